"""The strategies conform: one process, and replicas on threads. Processes: test_distributed.py."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sordino.forward.sources import PrefixSource
from sordino.models.base_model import BaseModel
from sordino.training.config import TrainConfig
from sordino.training.gradient import Batch
from sordino.training.mixture.components import MatrixPart, component_form
from sordino.training.mixture.joint import MixtureLoss
from sordino.training.strategy import SINGLE_PROCESS, Item, Strategy, share_of_runs
from tests.training import strategy_conformance
from tests.training.runs import off, small_base, small_set, start_of
from tests.training.strategy_conformance import TOLERANCE, Launch


@dataclass
class _World:
    """What the replicas of a run share: a place for each one's tensors, and a barrier."""

    size: int
    given: list[list[Tensor]] = field(default_factory=list)
    barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.given = [[] for _ in range(self.size)]
        self.barrier = threading.Barrier(self.size, timeout=60)


@dataclass(frozen=True)
class Replica:
    """One of several threads, each with every n-th example; their tensors are summed in the order of the threads."""

    world: _World
    rank: int

    @property
    def processes(self) -> int:
        return self.world.size

    @property
    def together(self) -> bool:
        return False

    @property
    def saves(self) -> bool:
        return self.rank == 0

    def place(self, base: BaseModel) -> BaseModel:
        return base

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        return items[self.rank :: self.world.size]

    def reduce(self, tensors: Sequence[Tensor]) -> None:
        self.world.given[self.rank] = [tensor.clone() for tensor in tensors]
        self.world.barrier.wait()
        for tensor, *given in zip(tensors, *self.world.given, strict=True):
            tensor.copy_(torch.stack(given).sum(0))
        self.world.barrier.wait()


def replicas(count: int, model: BaseModel | None = None) -> Launch:
    def launch(function: Callable[[Strategy, BaseModel], Any]) -> list[Any]:
        # Made ahead: random weights come from a stream that all threads share.
        world, base = _World(count), model or small_base()

        def one(rank: int) -> Any:
            try:
                return function(Replica(world, rank), base)
            except BaseException:
                world.barrier.abort()
                raise

        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(one, range(count)))

    return launch


def single(function: Callable[[Strategy, BaseModel], Any]) -> list[Any]:
    return [function(SINGLE_PROCESS, small_base())]


@pytest.mark.parametrize("launch", [single, replicas(2), replicas(3)], ids=["single", "2 replicas", "3 replicas"])
def test_it_conforms(launch: Launch, tmp_path: Path) -> None:
    strategy_conformance.check(launch, tmp_path)


@pytest.mark.parametrize("count", [2, 3])
def test_a_mixtures_loss_and_weights_are_one_processs(count: int) -> None:
    """Of two examples, so that the third replica has none."""

    def computed(strategy: Strategy, base: BaseModel) -> tuple[Tensor, Tensor, list[float]]:
        matrix = torch.cat([start_of(base), start_of(base, 3) * 0.5]).requires_grad_()
        form = component_form(base, "embedding", "start")
        slots = [MatrixPart(form, rows, base.d_model, 1.0) for rows in (4, 3)]
        mixture = MixtureLoss(slots, TrainConfig(), lambda step: 0.5)
        batch = Batch(PrefixSource(matrix, "start"), small_set(base).train[:2])
        losses = mixture.backward(base, [batch], 1024, strategy) + mixture.mean(base, [batch], 1024, strategy)
        assert matrix.grad is not None
        return matrix.grad, mixture.weights_K, losses

    (gradient, weights_K, losses) = computed(SINGLE_PROCESS, small_base())
    for ours in replicas(count)(computed):
        assert off(ours[0], gradient) <= TOLERANCE
        torch.testing.assert_close(ours[1], weights_K, rtol=TOLERANCE, atol=0)
        assert ours[2] == pytest.approx(losses, abs=TOLERANCE)


def test_whole_runs_are_shared_while_each_process_gets_as_many() -> None:
    """Of five runs of three examples, three processes take one each; the rows of the other two are shared."""
    runs = [[f"{run}{row}" for row in range(3)] for run in range(5)]
    world = _World(3)
    shares = [share_of_runs(Replica(world, rank), runs) for rank in range(3)]
    assert [[len(part) for part in own] for own in shares] == [[3, 0, 0, 1, 1], [0, 3, 0, 1, 1], [0, 0, 3, 1, 1]]
    assert sorted(row for own in shares for part in own for row in part) == sorted(row for run in runs for row in run)
    assert share_of_runs(SINGLE_PROCESS, runs) == runs
