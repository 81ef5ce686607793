"""What the engine needs of a program that runs a model: rows open with a soft prompt, run some positions at a time, and close."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sordino.engine.requests import CacheUse
from sordino.errors import DoesNotFit, ModelError, SordinoError
from sordino.models.description import DescribedModel
from sordino.prompts.attention import Strengths
from sordino.prompts.prompt import Prompt
from sordino.prompts.soft_prompt import SoftPrompt


@dataclass(frozen=True)
class Span:
    """The next `ids` of a row: none without text, where the first token comes from the prefix.

    wanted: how many of the last positions return logits; without text 1 or 0.
    """

    number: int
    ids: Sequence[int]
    wanted: int


def overflowing(prompt: Prompt | None) -> SordinoError:
    """For a finite soft prompt whose keys and values are not finite."""
    if prompt is None:
        return ModelError("the model's state after its own BOS is not finite", do="choose a --dtype of larger range")
    return DoesNotFit(
        "the model's state after this soft prompt is not finite",
        where=prompt.metadata.name,
        got=f"values up to {abs(prompt.matrix).max():.3g}" if isinstance(prompt, SoftPrompt) else f"a {prompt.kind}",
        do="choose another soft prompt, or a --dtype of larger range",
    )


class Runner(Protocol):
    """A model, and the keys and values of the rows that run on it. The engine gives each row its number."""

    @property
    def model(self) -> DescribedModel: ...

    @property
    def name(self) -> str:
        """The program that computes, as people know it."""

    @property
    def hold(self) -> bool:
        """Whether it keeps a prompt's attention as the text grows."""

    @property
    def strengths(self) -> Strengths:
        """Those that it can give a prompt."""

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of prompt that rows can open with (`Prompt.kind`)."""

    @property
    def most_positions(self) -> int:
        """The longest row, prefix included, that memory holds when it is the only one."""

    def holds(self, rows: Sequence[tuple[Prompt | None, int]]) -> bool:
        """Whether memory holds rows of these prompts and lengths, prefixes included, when there are no others."""

    def hidden_of(self, ids: Sequence[int]) -> NDArray[np.floating[Any]]:
        """h(x) [D] of a text, see `prompts.mixture.Gate`; a BOS at the start of `ids` is left out. Raises OutOfMemory."""

    def prepare(self, prompts: Sequence[Prompt | None]) -> None:
        """Announce the prompts that `open` gets next: those that are not cached may be encoded now, in one batch. They stay until
        `open` takes them, or until a call leaves them out. Prompts that do not fit are skipped."""

    def open(self, number: int, prompt: Prompt | None, ids: Sequence[int], written: int = 0) -> int | None:
        """Open a row with a soft prompt. Returns how many of `ids` are cached and need not run, or None without room. written: how
        many of the last ids the model wrote before the row was preempted.

        Raises DoesNotFit for a soft prompt of another width, or one whose keys and values are not finite; OutOfMemory.
        """

    def grow(self, number: int, count: int) -> bool:
        """Make room for `count` more positions. False: there is none."""

    def run(self, spans: Sequence[Span]) -> Tensor | NDArray[np.float32]:
        """Logits [wanted positions, V], in the order of the spans, float32, on the CPU. An array where PyTorch is not involved (see
        `Engine.step`)."""

    def close(self, number: int, ids: Sequence[int]) -> None:
        """Close a row. ids: its text, which may be cached as far as it has run; none where the row failed."""

    def cache_use(self) -> CacheUse:
        """For metrics."""
