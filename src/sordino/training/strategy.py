"""Where a training run's base model is placed, and how the processes that train it work as one.

Every process runs the same loop on the same settings and holds the same parameters. A process computes losses and gradients of
its share of a step's examples; `reduce` adds them up, and every process takes the same optimiser step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sordino.models.base_model import BaseModel
from sordino.texts.examples import Example


class Strategy(Protocol):
    """The processes of a training run, seen from one of them. `tests/train/strategy_conformance.py` checks an implementation.

    An implementer owes that all processes make the same calls of `reduce` in the same order wherever they give the same answers
    to `share`, and that a run of several processes gives what one process gives, but for rounding.
    """

    @property
    def saves(self) -> bool:
        """Whether this process writes checkpoints and metrics. True in exactly one process."""

    def place(self, base: BaseModel) -> BaseModel:
        """The base model as this process runs it: replicated, quantised or sharded, frozen, and of the same fingerprint."""

    def share(self, examples: Sequence[Example]) -> Sequence[Example]:
        """This process's part of `examples`, in their order. All parts together hold each example once; a part may be empty."""

    def reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over all processes, which must be the same bits in every process.

        They are on the CPU, float32 or float64, and of the same shapes in every process.
        """


@dataclass(frozen=True)
class SingleProcess:
    """One process: it runs the base model where it is, computes everything, and saves."""

    saves: bool = True

    def place(self, base: BaseModel) -> BaseModel:
        return base

    def share(self, examples: Sequence[Example]) -> Sequence[Example]:
        return examples

    def reduce(self, tensors: Sequence[Tensor]) -> None:
        del tensors


SINGLE_PROCESS = SingleProcess()


def any_process(strategy: Strategy, flag: object) -> bool:
    """Whether `flag` is true in any process: the same answer in all of them."""
    total = torch.tensor([float(bool(flag))])
    strategy.reduce([total])
    return bool(total > 0)
