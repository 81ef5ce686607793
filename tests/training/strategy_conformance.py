"""What every `Strategy` must do. Give `check` a way to run a function once in each process of the strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sordino.forward.sources import PrefixSource
from sordino.models.base_model import BaseModel
from sordino.training.checkpoint import FILE
from sordino.training.events import METRICS, Finished, Step, Validation
from sordino.training.gradient import Batch, losses_and_gradients, mean_nlls
from sordino.training.loop import Run, train
from sordino.training.report import read_events
from sordino.training.strategy import SINGLE_PROCESS, Strategy, any_process
from tests.training.runs import CONFIG, off, small_base, small_set, start_of, stop_after

# From a function of a strategy and the base model that it is given to its answers, one a process.
Launch = Callable[[Callable[[Strategy, BaseModel], Any]], list[Any]]
# Sums in another order: float32 on tiny models, in norm.
TOLERANCE = 1e-5


def check(launch: Launch, folder: Path) -> None:
    """All of it. folder: empty, and the same for all processes."""
    check_shares(launch)
    check_sums(launch)
    check_gradients(launch)
    check_a_run(launch, folder)
    check_stopping(launch, folder)


def check_shares(launch: Launch) -> None:
    """The shares are a partition in order, of many examples and of fewer than there are processes; one process saves."""
    examples = small_set(small_base()).train
    for some in (examples, examples[:1]):
        shares = launch(lambda strategy, base, some=some: list(strategy.share(some)))
        assert sorted((e for share in shares for e in share), key=some.index) == list(some)
        assert all(share == sorted(share, key=some.index) for share in shares)
    assert launch(lambda strategy, base: strategy.saves).count(True) == 1


def check_sums(launch: Launch) -> None:
    """`reduce` sums in place, gives the same bits everywhere, and takes several tensors of two dtypes."""
    sizes = launch(lambda strategy, base: len(strategy.share(small_set(base).train)))

    def sums(strategy: Strategy, base: BaseModel) -> tuple[torch.Tensor, torch.Tensor, bool, bool]:
        own = len(strategy.share(small_set(base).train))
        tensors = [torch.full((3, 2), own / 3), torch.tensor([own], dtype=torch.float64)]
        strategy.reduce(tensors)
        return *tensors, any_process(strategy, strategy.saves), any_process(strategy, False)

    answers = launch(sums)
    for thirds, total, some, none in answers:
        assert torch.equal(thirds, answers[0][0])
        torch.testing.assert_close(thirds, torch.full((3, 2), sum(sizes) / 3))
        assert (total.tolist(), some, none) == ([sum(sizes)], True, False)


def check_gradients(launch: Launch) -> None:
    """Losses, gradients and validation of two runs, one of them with fewer examples than processes, are one process's."""

    def computed(strategy: Strategy, base: BaseModel) -> tuple[list[float], list[float], list[torch.Tensor]]:
        base, data = strategy.place(base), small_set(base)
        matrices = [start_of(base).requires_grad_() for _ in range(2)]
        batches = [
            Batch(PrefixSource(matrices[0], "start"), data.train),
            Batch(PrefixSource(matrices[1], "start"), data.validation[:1]),
        ]
        losses = losses_and_gradients(base, batches, 1024, strategy)
        means = mean_nlls(base, batches, 1024, strategy)
        return losses, means, [m.grad for m in matrices if m.grad is not None]

    losses, means, gradients = computed(SINGLE_PROCESS, small_base())
    answers = launch(computed)
    for ours in answers:
        assert ours[0] == pytest.approx(losses, abs=TOLERANCE)
        assert ours[1] == pytest.approx(means, abs=TOLERANCE)
        assert all(off(own, other) <= TOLERANCE for own, other in zip(ours[2], gradients, strict=True))
        assert all(torch.equal(own, other) for own, other in zip(ours[2], answers[0][2], strict=True))


def check_a_run(launch: Launch, folder: Path) -> None:
    """A whole run is one process's run; all processes end with the same bits; its files are written once, and resume it."""
    for name in ("one", "several"):
        (folder / name).mkdir()

    def trained(strategy: Strategy, base: BaseModel, name: str, **how: Any) -> list[Any]:
        # Metrics would be as many as processes if more than one wrote them.
        run = Run("", small_set(base), replace(CONFIG, batch=5), folder / name, start_of(base))
        return list(train(base, run, strategy=strategy, **how))

    expected = trained(SINGLE_PROCESS, small_base(), "one")
    answers = launch(lambda strategy, base: trained(strategy, base, "several"))
    for events in answers:
        assert [type(event) for event in events] == [type(event) for event in expected]
        for ours, own in zip(events, expected, strict=True):
            if isinstance(ours, Step | Validation):
                assert (ours.step, ours.loss) == (own.step, pytest.approx(own.loss, abs=10 * TOLERANCE))
        assert isinstance(events[-1], Finished)
        assert off(events[-1].matrix_PD, expected[-1].matrix_PD) <= 100 * TOLERANCE
        assert torch.equal(events[-1].matrix_PD, answers[0][-1].matrix_PD)
    assert len(read_events(folder / "several")) == len(read_events(folder / "one"))
    assert (folder / "several" / METRICS).is_file()
    assert (folder / "several" / FILE).is_file()
    for (finished,) in launch(lambda strategy, base: trained(strategy, base, "several", resume=True)):
        assert torch.equal(finished.matrix_PD, answers[0][-1].matrix_PD)


def check_stopping(launch: Launch, folder: Path) -> None:
    """A stop asked for in one process, which does not save, ends all of them after the same step; the run resumes exactly."""
    (folder / "stopped").mkdir()

    def trained(strategy: Strategy, base: BaseModel, *, steps: int = 0, resume: bool = False) -> list[Any]:
        stop = stop_after(steps)
        run = Run("", small_set(base), replace(CONFIG, batch=5), folder / "stopped", start_of(base))
        return list(
            train(base, run, strategy=strategy, resume=resume, should_stop=lambda: stop() and not strategy.saves)
        )

    first = launch(lambda strategy, base: trained(strategy, base, steps=4))
    if len(first) > 1:
        assert [events[-1].why for events in first] == ["stopped"] * len(first)
        assert [events[-1].progress.step for events in first] == [4] * len(first)
    rest = launch(lambda strategy, base: trained(strategy, base, resume=True))
    whole = launch(lambda strategy, base: trained(strategy, base))
    for ours, own in zip(rest, whole, strict=True):
        assert torch.equal(ours[-1].matrix_PD, own[-1].matrix_PD)
