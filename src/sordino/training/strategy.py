"""Where a training run's base model is placed, and how the processes that train it work as one.

Every process runs the same loop on the same settings and holds the same parameters. A process computes losses and gradients of
its share of a step's examples; `reduce` adds them up, and every process takes the same optimiser step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from sordino.errors import TrainingError
from sordino.models.base_model import BaseModel

Item = TypeVar("Item")


class Strategy(Protocol):
    """The processes of a training run, seen from one of them. `tests/training/strategy_conformance.py` checks an implementation.

    An implementer owes that all processes make the same calls of `reduce` in the same order wherever they give the same answers
    to `share`, and that a run of several processes gives what one process gives, but for rounding.
    """

    @property
    def processes(self) -> int:
        """How many there are."""

    @property
    def together(self) -> bool:
        """Whether each pass through the base model needs all processes, which then run equally many."""

    @property
    def saves(self) -> bool:
        """Whether this process writes checkpoints and metrics. True in exactly one process."""

    def place(self, base: BaseModel) -> BaseModel:
        """The base model as this process runs it: replicated, quantised or sharded, frozen, and of the same fingerprint."""

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of `items`, in their order. All parts together hold each item once, and are of one size, or one more;
        a part may be empty.
        """

    def reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over all processes, which must be the same bits in every process.

        They are on the CPU, float32 or float64, and of the same shapes in every process. Raises TrainingError where a process
        has ended.
        """


@dataclass(frozen=True)
class SingleProcess:
    """One process: it runs the base model where it is, computes everything, and saves."""

    processes: int = 1
    together: bool = False
    saves: bool = True

    def place(self, base: BaseModel) -> BaseModel:
        return base

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        return items

    def reduce(self, tensors: Sequence[Tensor]) -> None:
        del tensors


SINGLE_PROCESS = SingleProcess()


def share_of_runs(strategy: Strategy, runs: Sequence[Sequence[Item]]) -> list[Sequence[Item]]:
    """This process's part of the examples of each run in a step.

    Whole runs, as long as every process gets as many of them: a run's prompt then goes through the model in one process, not in
    all. The examples of the runs that are left over are shared.
    """
    whole = len(runs) // strategy.processes * strategy.processes
    own = set(strategy.share(range(whole)))
    return [
        strategy.share(examples) if number >= whole else examples if number in own else ()
        for number, examples in enumerate(runs)
    ]


def any_process(strategy: Strategy, flag: object) -> bool:
    """Whether `flag` is true in any process: the same answer in all of them."""
    total = torch.tensor([float(bool(flag))])
    strategy.reduce([total])
    return bool(total > 0)


def agreed(strategy: Strategy, tensor: Tensor) -> Tensor:
    """The tensor of the process that saves, bit for bit, in all of them. Each process gives one of the same shape."""
    own = tensor.clone() if strategy.saves else torch.zeros_like(tensor)
    strategy.reduce([own])
    return own


def agreed_number(strategy: Strategy, number: float) -> float:
    """As `agreed`, for a number that each process has measured for itself, such as a time."""
    return float(agreed(strategy, torch.tensor([number], dtype=torch.float64)))


def most(strategy: Strategy, count: int) -> int:
    """The largest count of any process."""
    counts = torch.zeros(strategy.processes)
    counts[list(strategy.share(range(strategy.processes)))] = count
    strategy.reduce([counts])
    return int(counts.max())


def check_alike(strategy: Strategy, what: object) -> None:
    """Raise TrainingError where processes have other texts, settings or base models, by their `repr`: they would train another
    soft prompt than each alone, without a sign.
    """
    digest = torch.tensor(list(hashlib.sha256(repr(what).encode()).digest()), dtype=torch.float64)
    if any_process(strategy, not torch.equal(agreed(strategy, digest), digest)):
        raise TrainingError(
            "the processes have different texts, settings or base models",
            do="give the same command in all, on the same files",
        )
