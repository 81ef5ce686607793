"""Examples in memory: token ids and labels in compact arrays, from which an `Example` is made when it is read.

A tuple takes 8 bytes for an id, 8 for a label and 28 for the number itself; here a token takes 2 to 4 in all.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

# The largest id of the small array's type.
_SMALL = 2**16 - 1
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """What is predicted in place of N labelled tokens: for each, k words ids_Nk (int64) with weights_Nk (float32)."""

    ids_Nk: NDArray[np.int64]
    weights_Nk: NDArray[np.float32]

    @staticmethod
    def joined(parts: Sequence[SoftTargets]) -> SoftTargets:
        """All of them, one after another. Raises ValueError where they differ in k."""
        return SoftTargets(
            np.concatenate([part.ids_Nk for part in parts]), np.concatenate([part.weights_Nk for part in parts])
        )


@dataclass(frozen=True)
class Example:
    """ids: without BOS. labelled[i]: token i is a target. piece: the name of the piece it comes from. soft: what is predicted in
    place of its labelled tokens, None for these themselves. input: how many of the first ids an encoder reads; None for a decoder.
    """

    ids: tuple[int, ...]
    labelled: tuple[bool, ...]
    piece: str
    soft: SoftTargets | None = field(default=None, compare=False)
    input: int | None = None


class ExampleStore(Sequence[Example]):
    """A sequence of examples without soft targets that equals the tuple of them."""

    def __init__(self) -> None:
        self._ids = array("H")
        self._ends = array("Q")
        # The lengths of each example's runs of equal labels, unlabelled first, and where they end.
        self._runs = array("I")
        self._run_ends = array("Q")
        self._pieces: list[str] = []
        self._piece_of = array("I")
        # Filled for encoder-decoders only.
        self._inputs = array("I")

    def add(self, ids: Sequence[int], labelled: Sequence[bool], piece: str, *, input: int | None = None) -> None:
        """All examples have an input, or none has."""
        if input is not None:
            self._inputs.append(input)
        if self._ids.typecode == "H" and max(ids, default=0) > _SMALL:
            self._ids = array("I", self._ids)
        self._ids.extend(ids)
        self._ends.append(len(self._ids))
        if labelled and labelled[0]:
            self._runs.append(0)
        self._runs.extend(sum(1 for _ in run) for _, run in groupby(labelled))
        self._run_ends.append(len(self._runs))
        if not self._pieces or self._pieces[-1] != piece:
            self._pieces.append(piece)
        self._piece_of.append(len(self._pieces) - 1)

    @property
    def tokens(self) -> int:
        """The number of tokens in all examples."""
        return len(self._ids)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> Example: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[Example, ...]: ...

    def __getitem__(self, at: int | slice) -> Example | tuple[Example, ...]:
        if isinstance(at, slice):
            return tuple(self._example(one) for one in range(*at.indices(len(self))))
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        return self._example(at % len(self))

    def __iter__(self) -> Iterator[Example]:
        return map(self._example, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, tuple | ExampleStore) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def _example(self, at: int) -> Example:
        first, first_run = (self._ends[at - 1], self._run_ends[at - 1]) if at else (0, 0)
        labelled: list[bool] = []
        for number, length in enumerate(self._runs[first_run : self._run_ends[at]]):
            labelled += [number % 2 == 1] * length
        ids, piece = tuple(self._ids[first : self._ends[at]]), self._pieces[self._piece_of[at]]
        return Example(ids, tuple(labelled), piece, input=self._inputs[at] if self._inputs else None)


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of them, spread evenly."""
    return [items[at * len(items) // count] for at in range(count)]


def tokens_of(examples: Sequence[Example]) -> int:
    """How many tokens the examples have."""
    return examples.tokens if isinstance(examples, ExampleStore) else sum(len(example.ids) for example in examples)
