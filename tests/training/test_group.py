"""Several runs on one base model: each learns what it learns alone, ends when it ends, and all resume exactly after a crash."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sordino.errors import CheckpointError, DataError
from sordino.forward.sources import PrefixSource
from sordino.texts.examples import Example
from sordino.training import loop
from sordino.training.checkpoint import FILE, is_unfinished, read_header
from sordino.training.events import Finished, Lost, Sample, Step, Validation
from sordino.training.gradient import Batch, Loss, losses_and_gradients, mean_nlls
from sordino.training.loop import Run, RunGroup, TrainSet, train, train_group
from tests.tiny_models import tiny_base
from tests.training.runs import (
    CONFIG,
    loss_alone,
    mean_alone,
    metrics_of,
    off,
    several_runs,
    small_base,
    small_set,
    start_of,
    stop_after,
)


def _together(base, folder, runs, **kwargs):
    """Each run's events by its name."""
    found = {run.name: [] for run in runs}
    of_group = {key: kwargs.pop(key) for key in ("prune", "loss") if key in kwargs}
    for name, event in train_group(base, RunGroup(runs, folder, **of_group), **kwargs):
        found[name].append(event)
    return found


def test_each_run_is_what_it_is_alone_and_the_base_model_is_left_alone(tmp_path):
    base = tiny_base("llama")
    before = {name: tensor.clone() for name, tensor in base.network.state_dict().items()}
    runs = several_runs(base, tmp_path / "group")
    found = _together(base, tmp_path / "group", runs)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.network.state_dict().items())
    assert all(parameter.grad is None for parameter in base.network.parameters())
    for run in runs:
        (tmp_path / run.name).mkdir()
        alone = list(train(base, replace(run, folder=tmp_path / run.name)))
        together = found[run.name]
        assert [type(e) for e in together] == [type(e) for e in alone]
        assert [e.why for e in together if isinstance(e, Finished)] == [alone[-1].why]
        for ours, own in zip(together, alone, strict=True):
            if isinstance(ours, Step | Validation):
                assert (ours.step, ours.loss) == (own.step, pytest.approx(own.loss, abs=1e-5))
            if isinstance(ours, Step):
                assert (ours.tokens, ours.lr) == (own.tokens, own.lr)
            if isinstance(ours, Sample):
                assert ours == own
        assert off(together[-1].matrix_PD, alone[-1].matrix_PD) < 1e-4


def test_a_run_that_is_over_leaves_its_rows(tmp_path):
    base = small_base()
    sizes = []

    def counted(base, batches, *rest):
        sizes.append(len(batches))
        return losses_and_gradients(base, batches, *rest)

    found = _together(base, tmp_path, several_runs(base, tmp_path), loss=Loss(counted, mean_nlls))
    lengths = sorted(sum(isinstance(e, Step) for e in events) for events in found.values())
    assert lengths == [7, 12, 12, 15]
    assert sizes == [4] * 7 + [3] * 5 + [1] * 3


def test_early_stopping_is_each_runs_own(tmp_path):
    base = small_base()
    runs = [
        replace(run, config=replace(CONFIG, patience=2, steps=12, context=0.0))
        for run in several_runs(base, tmp_path)[:2]
    ]
    losses = iter([[5.0, 5.0], [4.0, 4.0], [4.5, 3.0], [4.6, 2.0], [1.0]])
    found = _together(base, tmp_path, runs, loss=Loss(losses_and_gradients, lambda *a: next(losses)))
    first, second = (events[-1] for events in found.values())
    assert (first.why, first.progress.step, first.progress.best_step) == ("early", 9, 3)
    assert (second.why, second.progress.step, second.progress.best_step) == ("steps", 12, 12)


def test_a_run_that_diverges_ends_alone(tmp_path):
    base = small_base()
    runs = several_runs(base, tmp_path)
    whole = _together(base, tmp_path, runs)
    folder = tmp_path / "again"
    runs = several_runs(base, folder)
    runs[1].start_PD[0, 0] = float("inf")
    found = _together(base, folder, runs)
    lost, finished = found["b"][-2:]
    assert isinstance(lost, Lost)
    assert finished.why == "diverged"
    assert read_header(runs[1].folder)["progress"]["finished"] == "diverged"
    for name in ("a", "c", "d"):
        assert off(found[name][-1].matrix_PD, whole[name][-1].matrix_PD) < 1e-3
        assert found[name][-1].why == whole[name][-1].why


def test_runs_can_be_ended_by_how_the_others_do(tmp_path):
    base = small_base()
    runs = [replace(run, config=CONFIG) for run in several_runs(base, tmp_path)]
    asked = []

    def prune(step, losses):
        asked.append((step, sorted(losses)))
        return sorted(losses, key=losses.__getitem__)[len(losses) // 2 :] if step in (3, 6) else ()

    found = _together(base, tmp_path, runs, prune=prune)
    assert sorted(events[-1].why for events in found.values()) == ["pruned", "pruned", "pruned", "steps"]
    assert [(step, len(names)) for step, names in asked] == [(3, 4), (6, 2), (9, 1), (12, 1)]
    assert sorted(events[-1].progress.step for events in found.values()) == [3, 3, 6, 12]


@pytest.mark.parametrize("steps", [1, 8, 13])
def test_stopped_runs_go_on_exactly(tmp_path, steps):
    """Before any is over, after one is, and when one is left."""
    base = small_base()
    whole = _together(base, tmp_path / "whole", several_runs(base, tmp_path / "whole"))
    folder = tmp_path / "cut"
    runs = several_runs(base, folder)
    _together(base, folder, runs, should_stop=stop_after(steps))
    assert is_unfinished(folder)
    rest = _together(base, folder, runs, resume=True)
    assert not is_unfinished(folder)
    for run in runs:
        assert torch.equal(rest[run.name][-1].matrix_PD, whole[run.name][-1].matrix_PD)
        assert metrics_of(folder / run.name) == metrics_of(tmp_path / "whole" / run.name)
    again = _together(base, folder, runs, resume=True)
    assert all(torch.equal(again[run.name][-1].matrix_PD, rest[run.name][-1].matrix_PD) for run in runs)


def test_a_crash_between_the_checkpoints_goes_on_from_the_groups(tmp_path, monkeypatch):
    """Run "a" is over and has its own file; the process dies before the group's says so."""
    base = small_base()
    whole = _together(base, tmp_path / "whole", several_runs(base, tmp_path / "whole"))
    folder = tmp_path / "cut"
    runs = several_runs(base, folder)
    with monkeypatch.context() as patch:
        real, calls = loop.save_group, iter(range(100))
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(loop, "save_group", lambda *a: real(*a) if next(calls) < 7 else (_ for _ in ()).throw(KeyError))
        with pytest.raises(KeyError):
            _together(base, folder, runs)
    assert (folder / "a" / FILE).exists()
    rest = _together(base, folder, runs, resume=True)
    for run in runs:
        assert torch.equal(rest[run.name][-1].matrix_PD, whole[run.name][-1].matrix_PD)


def test_what_cannot_go_on_is_refused(tmp_path):
    base = small_base()
    runs = several_runs(base, tmp_path)
    with pytest.raises(CheckpointError, match="no run to resume"):
        _together(base, tmp_path, runs, resume=True)
    _together(base, tmp_path, runs, should_stop=lambda: True)
    with pytest.raises(CheckpointError, match="the runs are others"):
        _together(base, tmp_path, runs[:2], resume=True)
    with pytest.raises(CheckpointError, match="several runs"):
        list(train(base, replace(runs[0], folder=tmp_path), resume=True))
    with pytest.raises(CheckpointError, match="other settings"):
        _together(base, tmp_path, [replace(run, config=replace(run.config, lr=0.1)) for run in runs], resume=True)
    with pytest.raises(DataError, match="b"):
        _together(base, tmp_path, [runs[0], replace(runs[1], data=TrainSet((), (), ""))])
    data = bytearray((tmp_path / FILE).read_bytes())
    data[-9] ^= 1
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        _together(base, tmp_path, runs, resume=True)


def test_one_run_in_a_group_has_the_bits_of_a_single_run(tmp_path):
    base = small_base()
    for name in ("alone", "group", "group/x"):
        (tmp_path / name).mkdir()
    alone = list(train(base, Run("", small_set(base), CONFIG, tmp_path / "alone", start_of(base))))
    run = Run("x", small_set(base), CONFIG, tmp_path / "group" / "x", start_of(base))
    assert torch.equal(_together(base, tmp_path / "group", [run])["x"][-1].matrix_PD, alone[-1].matrix_PD)


@pytest.mark.slow
def test_on_smollm2_each_run_is_what_it_is_alone(smollm2, tmp_path):
    """The gradient from equal state within 1e-5 in norm, and the loss at the end within 0.005."""
    base = smollm2
    text = "The wind is in the north and the glass is falling, and Herself was lit at four and burned true. "
    ids = base.encode(text * 40)
    runs = []
    for number, (tokens, width) in enumerate([(5, 24), (20, 32), (20, 32), (50, 17)]):
        examples = [
            Example(tuple(ids[at : at + width - at % 5]), (True,) * len(ids[at : at + width - at % 5]), "")
            for at in range(number * 7, number * 7 + 12 * width, width)
        ]
        settings = {"tokens": tokens, "row_tokens": width, "batch": 2, "steps": 6, "sample_every": 99, "seed": number}
        config = replace(CONFIG, context_tokens=48, **settings)
        (tmp_path / f"{number}").mkdir()
        start = base.embed(torch.tensor(ids[number : number + tokens])).detach().float()
        runs.append(Run(f"{number}", TrainSet(examples[:8], examples[8:], ""), config, tmp_path / f"{number}", start))
    batches = [Batch(PrefixSource(run.start_PD.clone().requires_grad_(), "start"), run.data.train[:3]) for run in runs]
    losses = losses_and_gradients(base, batches, pass_tokens=1024)
    for loss, batch in zip(losses, batches, strict=True):
        own = batch.of(batch.source.matrix_PW.detach().clone().requires_grad_(), batch.examples)
        assert loss == pytest.approx(loss_alone(base, own, 1024), abs=1e-5)
        assert off(batch.source.matrix_PW.grad, own.source.matrix_PW.grad) <= 1e-5
    found = _together(base, tmp_path, runs)
    for run in runs:
        (tmp_path / f"alone{run.name}").mkdir()
        alone = list(train(base, replace(run, folder=tmp_path / f"alone{run.name}")))
        matrices = [found[run.name][-1].matrix_PD, alone[-1].matrix_PD]
        heldout = [
            mean_alone(base, Batch(PrefixSource(matrix, "start"), run.data.validation), 1024) for matrix in matrices
        ]
        assert heldout[0] == pytest.approx(heldout[1], abs=0.005)
