"""What the engine asks of whatever runs a model: rows are opened behind a soft prompt, run some positions at a time, and closed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sordino.engine.requests import CacheUse
from sordino.errors import DoesNotFit, ModelError, SordinoError
from sordino.prompts.prompt import Prompt
from sordino.prompts.soft_prompt import SoftPrompt


@dataclass(frozen=True)
class Span:
    """The next `ids` of a row; none for a row without text, whose first word comes from its prefix. wanted: its last logits."""

    number: int
    ids: Sequence[int]
    wanted: bool


def overflowing(prompt: Prompt | None) -> SordinoError:
    """For a soft prompt that is finite and whose keys and values are not."""
    if prompt is None:
        return ModelError("the model makes no numbers of its own BOS", do="take a --dtype of larger range")
    return DoesNotFit(
        "the model makes no finite numbers of this soft prompt",
        where=prompt.metadata.name,
        got=f"values up to {abs(prompt.matrix).max():.3g}" if isinstance(prompt, SoftPrompt) else f"a {prompt.kind}",
        do="take another, or a --dtype of larger range",
    )


def text_alone(ids: Sequence[int], bos: Sequence[int]) -> Sequence[int]:
    """What a gate reads of a request's ids: all but a BOS that they begin with."""
    return ids[len(bos) :] if bos and list(ids[: len(bos)]) == list(bos) else ids


class Runner(Protocol):
    """A model and the keys and values of the rows that run on it. Rows are known by numbers that the engine gives."""

    @property
    def name(self) -> str:
        """Who computes, for people."""

    def prefix_length(self, prompt: Prompt | None) -> int:
        """Positions in front of a row's text: the soft prompt and a BOS. Nothing is run."""

    @property
    def most_positions(self) -> int:
        """The longest row, its prefix included, that memory holds if it is alone."""

    def holds(self, lengths: Sequence[int]) -> bool:
        """Whether memory holds rows of so many positions, prefixes included, side by side if there are no others."""

    def hidden_of(self, ids: Sequence[int]) -> NDArray[np.floating[Any]]:
        """h(x) [D] of a text, see `prompt_mixture.Gate`; a BOS that `ids` begin with is no part of it. Raises OutOfMemory."""

    def prepare(self, prompts: Sequence[Prompt | None]) -> None:
        """These will be asked for next: what is not kept may be run now, side by side. It stays until it is asked for, or until
        the next call does not name it. Skips what does not fit."""

    def open(self, number: int, prompt: Prompt | None, ids: Sequence[int]) -> int | None:
        """Begin a row behind a soft prompt: how many of `ids` need not be run, as they were kept. None: no room now.

        Raises DoesNotFit for a soft prompt of another width, or one that the model makes no numbers of; OutOfMemory.
        """

    def grow(self, number: int, count: int) -> bool:
        """Make room for `count` positions more. False: there is none."""

    def run(self, spans: Sequence[Span]) -> Tensor | NDArray[np.float32]:
        """Logits [wanted spans, V], float32, on the CPU. An array where PyTorch has no part in it (see `Engine.step`)."""

    def close(self, number: int, ids: Sequence[int]) -> None:
        """The row is over. ids: its text, which is worth keeping as far as it was run; none where it failed."""

    def cache_use(self) -> CacheUse:
        """For metrics."""
