"""The training loop: it learns, it leaves the model alone, and a killed run goes on as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sordino.errors import CheckpointError, ConfigError, DataError, Diverged, OutOfMemory, StorageError
from sordino.texts.examples import Example
from sordino.training.config import TrainConfig
from sordino.training.events import Finished, MetricsFile, Sample, Step, Validation
from sordino.training.gradient import Loss, losses_and_gradients, mean_nlls
from sordino.training.loop import Run, TrainSet, train
from sordino.training.schedule import batch_at, learning_rate
from sordino.training.state import fold, new_parameters
from tests.training.runs import CONFIG, first_matrix, metrics_of, small_base, small_set, start_of, stop_after
from tests.waiting import WAIT

ROOT = Path(__file__).parents[2]


def _hash_of(network) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted([*network.named_parameters(), *network.named_buffers()]):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().double().numpy().tobytes())
        assert tensor.grad is None
    return digest.hexdigest()


def _run(base, folder, config=CONFIG, data=None, **kwargs):
    return list(train(base, Run("", data or small_set(base), config, folder, first_matrix(base, config)), **kwargs))


KINDS = [{}, {"method": "residual"}, {"kind": "kv"}, {"kind": "kv", "placement": "start"}]


@pytest.mark.parametrize("change", KINDS)
def test_it_learns_and_leaves_the_base_model_alone(tmp_path, change):
    base = small_base()
    before = _hash_of(base.network)
    events = _run(base, tmp_path, replace(CONFIG, **change, steps=40))
    assert _hash_of(base.network) == before
    losses = [e.loss for e in events if isinstance(e, Validation)]
    assert min(losses) < losses[0] - 0.2
    assert isinstance(events[-1], Finished)
    assert events[-1].progress.best_loss == min(losses)


def test_a_crash_leaves_the_base_model_alone(tmp_path):
    base = small_base()
    before = _hash_of(base.network)
    with pytest.raises(Diverged, match="--lr"):
        _run(base, tmp_path, loss=Loss(lambda *a: [float("nan")], mean_nlls))
    assert _hash_of(base.network) == before


def test_a_run_that_diverged_is_ended_by_resuming_it(tmp_path):
    """What was learned before is not lost: the best matrix comes out, and all events stay written down."""
    base = small_base()
    calls = iter(range(100))
    loss = Loss(lambda *a: losses_and_gradients(*a) if next(calls) < 7 else [float("nan")], mean_nlls)
    with pytest.raises(Diverged, match="step 8"):
        _run(base, tmp_path, loss=loss)
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    assert b'"step": 7' in lines
    (finished,) = _run(base, tmp_path, resume=True)
    assert finished.why == "diverged"
    assert finished.progress.best_step == 6
    assert torch.isfinite(finished.matrix_PD).all()
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines


def test_metrics_that_cannot_be_written_are_our_error(tmp_path, monkeypatch):
    base = small_base()
    events = train(base, Run("", small_set(base), CONFIG, tmp_path, start_of(base)))
    next(events)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match="metrics could not be written"):
        next(events)


@pytest.mark.parametrize("written", range(4))
def test_a_run_that_the_disk_ends_before_its_first_save_goes_on_exactly(tmp_path, monkeypatch, written):
    """The error advises --resume: there is something to resume, whatever was written."""
    base = small_base()
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = _run(base, tmp_path / "whole")[-1]
    add, left = MetricsFile.add, iter(range(written))

    def full(metrics, event):
        if next(left, None) is None:
            raise StorageError("the run's metrics could not be written (No space left on device)")
        return add(metrics, event)

    with monkeypatch.context() as patched:
        patched.setattr(MetricsFile, "add", full)
        with pytest.raises(StorageError):
            _run(base, tmp_path / "stopped")
    resumed = _run(base, tmp_path / "stopped", resume=True)[-1]
    assert torch.equal(resumed.matrix_PD, whole.matrix_PD)
    kinds = [
        [json.loads(line)["kind"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "stopped")
    ]
    assert kinds[0] == kinds[1]


def test_a_run_whose_folder_is_gone_does_not_advise_to_make_room(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    (tmp_path / "metrics.jsonl").unlink()
    tmp_path.rmdir()
    with pytest.raises(
        StorageError, match=r"No such file or directory\); put the folder back, then --resume; or start again"
    ):
        metrics.add(Validation(1, 2.0, True))


def test_events_come_in_order_and_are_written_down(tmp_path):
    base = small_base()
    events = _run(base, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == [type(e).__name__.lower() for e in events[:-1]]
    assert [e.step for e in events if isinstance(e, Step)] == list(range(1, 13))
    assert [e.step for e in events if isinstance(e, Validation)] == [0, 3, 6, 9, 12]
    assert [e.step for e in events if isinstance(e, Sample)] == [5, 10]
    assert sum(e.tokens for e in events if isinstance(e, Step)) == events[-1].progress.tokens


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path):
    base = small_base()
    results = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        results.append(_run(base, tmp_path / name, replace(CONFIG, seed=seed))[-1].matrix_PD)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("change", KINDS)
@pytest.mark.parametrize("steps", [1, 4, 11])
def test_a_stopped_run_goes_on_exactly(tmp_path, change, steps):
    base = small_base()
    config = replace(CONFIG, **change)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = _run(base, tmp_path / "whole", config)
    first = _run(base, tmp_path / "cut", config, should_stop=stop_after(steps))
    assert first[-1].why == "stopped"
    rest = _run(base, tmp_path / "cut", config, resume=True)
    assert torch.equal(rest[-1].matrix_PD, whole[-1].matrix_PD)
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("what", "metrics", "kills", "runs"),
    [
        ("plain", "metrics.jsonl", (4, 25, 60), ("",)),
        pytest.param("residual", "metrics.jsonl", (4, 25, 60), ("",), marks=pytest.mark.slow),
        # Run "a" of a group is over after step 7, the eleventh line of run "d".
        ("group", "d/metrics.jsonl", (3, 13, 22), "abcd"),
    ],
)
def test_runs_killed_at_any_step_and_resumed_give_the_same_bits(tmp_path, what, metrics, kills, runs):
    """A real process and a real SIGKILL, several times over, at moments that the runs do not know."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}

    def process(folder: Path, lines: int, *flags: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.training.kill_me", str(folder), what, str(lines), *flags]
        return subprocess.Popen(command, env=environment, cwd=ROOT)

    whole, folder = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    folder.mkdir()
    assert process(whole, 10**6).wait(WAIT) == 0
    killed = 0
    flags: list[str] = []
    for lines in kills:
        run = process(folder, lines + 4, *flags)
        deadline = time.monotonic() + WAIT
        while run.poll() is None and time.monotonic() < deadline:
            if (folder / metrics).exists() and (folder / metrics).read_bytes().count(b"\n") >= lines:
                run.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        killed += run.wait(WAIT) == -signal.SIGKILL
        flags = ["resume"] if (folder / "checkpoint.safetensors").exists() else []
    assert killed == len(kills)
    assert process(folder, 10**6, *flags).wait(WAIT) == 0
    for name in runs:
        assert (folder / name / "matrix.bin").read_bytes() == (whole / name / "matrix.bin").read_bytes()


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 200), st.integers(0, 5))
def test_every_epoch_shows_every_example_once(count, batch, step, seed):
    examples = [Example((i,), (True,), "") for i in range(count)]
    config = TrainConfig(batch=batch, seed=seed)
    assert batch_at(examples, step, config) == batch_at(examples, step, config)
    # Epochs follow one another whatever the batch: `count` steps are as many epochs as a step has examples.
    seen = [e.ids[0] for s in range(count) for e in batch_at(examples, s, config)]
    for at in range(0, len(seen), count):
        assert sorted(seen[at : at + count]) == list(range(count))
    assert len({e.ids for e in batch_at(examples, step, config)}) <= min(batch, count)


def test_any_seed_that_the_flag_takes_gives_an_order():
    examples = [Example((i,), (True,), "") for i in range(9)]
    orders = [batch_at(examples, 10, TrainConfig(batch=3, seed=seed)) for seed in (0, 1_700_000_000_000_000, 2**63 - 1)]
    assert all(len(order) == 3 for order in orders)


def test_the_learning_rate_rises_then_falls():
    config = TrainConfig(steps=100, lr=1.0, warmup=0.1, final_lr=0.1)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_early_stopping_keeps_the_best_matrix(tmp_path):
    base = small_base()
    losses = iter([5.0, 4.0, 4.5, 4.6, 4.7, 1.0])
    loss = Loss(losses_and_gradients, lambda *a: [next(losses)])
    events = _run(base, tmp_path, replace(CONFIG, steps=30, patience=3, context=0.0), loss=loss)
    assert events[-1].why == "early"
    assert events[-1].progress.best_step == 3
    again = _run(base, tmp_path, replace(CONFIG, steps=30, patience=3, context=0.0), resume=True)
    assert torch.equal(again[-1].matrix_PD, events[-1].matrix_PD)


def test_memory_that_runs_out_names_the_flag_to_lower(tmp_path):
    def no_memory(*args, **kwargs):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
        )

    for loss in (Loss(no_memory, mean_nlls), Loss(losses_and_gradients, no_memory)):
        with pytest.raises(OutOfMemory, match="--pass-tokens"):
            _run(small_base(), tmp_path, loss=loss)


def test_other_errors_are_not_called_memory(tmp_path):
    def broken(*args, **kwargs):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        _run(small_base(), tmp_path, loss=Loss(broken, mean_nlls))


def test_a_resumed_run_must_have_the_same_data_and_model(tmp_path):
    base = small_base()
    _run(base, tmp_path)
    data = small_set(base)
    with pytest.raises(CheckpointError, match="data"):
        _run(base, tmp_path, data=TrainSet(data.train, data.validation, "other"), resume=True)
    with pytest.raises(CheckpointError, match="base model"):
        _run(small_base(seed=1), tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="resume"):
        _run(base, tmp_path / "nowhere", resume=True)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_a_damaged_checkpoint_is_not_gone_on_from(tmp_path, place):
    base = small_base()
    _run(base, tmp_path)
    data = bytearray((tmp_path / "checkpoint.safetensors").read_bytes())
    data[int(len(data) * place)] ^= 1
    (tmp_path / "checkpoint.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError):
        _run(base, tmp_path, resume=True)


def test_bad_settings_are_refused_by_flag(tmp_path):
    with pytest.raises(ConfigError, match="--tokens"):
        TrainConfig(tokens=0)
    with pytest.raises(ConfigError, match="--init"):
        TrainConfig(init="magic")
    with pytest.raises(ConfigError, match="unknown setting"):
        TrainConfig.from_json({"tokns": 3})
    with pytest.raises(ConfigError, match="--row-tokens"):
        _run(small_base(), tmp_path, replace(CONFIG, row_tokens=100_000))
    with pytest.raises(DataError):
        _run(small_base(), tmp_path, data=TrainSet((), (), ""), config=CONFIG)


def test_the_residual_method_starts_from_the_same_prompt():
    start = torch.randn(3, 8)
    assert torch.equal(fold(new_parameters(start, replace(CONFIG, method="residual"))), start)
