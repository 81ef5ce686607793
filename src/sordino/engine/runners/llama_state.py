"""What llama.cpp saves of a sequence: its bytes taken apart, with cells repeated, or with other keys and values in them.

Nothing in llama.cpp's interface writes keys and values, or adds to the scores of a position. Its saved states hold both: the
numbers, and the cells, of which w with one position get w times the attention of one, which is log w added to its scores. The
layout is that of `state_write` in llama-kv-cache.cpp and llama-kv-cache-iswa.cpp of `llama_library.VERSION`, which no header
promises: a state of any other layout is refused, never misread.

    8 bytes. Then for each cache (where some layers have a sliding window two, first of the layers without):
      streams: uint32; for each of them
        cells: uint32, and nothing more where it is 0
        cells x (position: int32, 1: uint32, sequence: int32)
        transposed, layers, channels of keys that are rotated, and of values: uint32
        layers x (type: int32, bytes of a row: uint64, cells x row): the keys
        layers x (the same): the values; transposed ones are (type: int32, bytes of a number: uint32, rows: uint32,
          rows x cells x number)

Shape key: S cells, W numbers of a cell in one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.engine.runners.llama_library import PACKAGE
from sordino.errors import ModelError

# A sequence's state, as llama.cpp saves it.
SavedState = NDArray[np.uint8]
# Which of the cells of these positions to write, in which order.
Choice = Callable[[NDArray[np.int32]], NDArray[np.intp]]
_HEAD = 8
# ggml's types of numbers that are stored one by one.
_TYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}


@dataclass(frozen=True, eq=False)
class Plane:
    """A layer's keys, or its values. head: as saved. data: a view of the state, uint8 [S, bytes], or transposed [W, S, bytes]."""

    head: SavedState
    data: SavedState

    def of_cells(self, index: NDArray[np.intp]) -> SavedState:
        """The bytes of the chosen cells, as saved."""
        chosen = self.data[index] if self.data.ndim == 2 else self.data[:, index]
        return np.concatenate([self.head, chosen.reshape(-1)])

    def numbers(self) -> NDArray[Any]:
        """[S, W]: a view, which may be written to. Raises ModelError where numbers are not stored one by one."""
        kind = int(self.head[:4].view("<i4")[0])
        dtype, size = _TYPES.get(kind), self.data.shape[-1]
        if dtype is None or size % dtype.itemsize or (self.data.ndim == 3 and size != dtype.itemsize):
            raise unknown_layout(f"numbers of type {kind} in {size} bytes")
        numbers = self.data.view(dtype)
        return numbers if numbers.ndim == 2 else numbers[..., 0].T


@dataclass(frozen=True, eq=False)
class CellStream:
    """cells_S3: positions, 1, sequences. counts, as saved: whether values are transposed, the number of layers, and the
    channels that are rotated before they are stored, of keys and of values: 0 where numbers are stored as they are."""

    cells_S3: NDArray[np.int32]
    counts: SavedState
    keys: Sequence[Plane]
    values: Sequence[Plane]


def caches_of(state: SavedState) -> list[list[CellStream | None]]:
    """The streams of each cache, None for those without cells; views of the state. Raises ModelError for another layout."""
    cursor, caches = _StateCursor(state, _HEAD), []
    while cursor.at < state.size:
        caches.append([_stream(cursor) for _ in range(cursor.number())])
    return caches


def weighted(width: int, first: int, copies: int) -> Choice:
    """Every cell once, but those of the positions from `first` to `width` so many times."""

    def chosen(positions_S: NDArray[np.int32]) -> NDArray[np.intp]:
        _, once = np.unique(positions_S, return_index=True)
        repeated = once[(positions_S[once] >= first) & (positions_S[once] < width)]
        return np.concatenate([once, *[repeated] * (copies - 1)])

    return chosen


def with_cells(state: SavedState, choose: Choice) -> SavedState:
    """The state with the chosen cells. Raises ModelError where the layout is another."""
    parts = [state[:_HEAD]]
    for streams in caches_of(state):
        parts.append(_bytes_of(len(streams)))
        for stream in streams:
            parts += [_bytes_of(0)] if stream is None else _chosen(stream, choose)
    return np.concatenate(parts)


def unknown_layout(got: str) -> ModelError:
    return ModelError(
        "this version of llama.cpp saves its state in another way",
        got=got,
        do="turn hold off (0), run KV prompts with another runner, or install the version that "
        f"`pip install {PACKAGE}` takes",
    )


def _chosen(stream: CellStream, choose: Choice) -> list[SavedState]:
    index = choose(stream.cells_S3[:, 0])
    cells = np.ascontiguousarray(stream.cells_S3[index]).reshape(-1).view(np.uint8)
    planes = [plane.of_cells(index) for plane in (*stream.keys, *stream.values)]
    return [_bytes_of(len(index)), cells, stream.counts, *planes]


def _bytes_of(number: int) -> SavedState:
    return np.array([number], "<u4").view(np.uint8)


def _stream(cursor: _StateCursor) -> CellStream | None:
    count = cursor.number()
    if not count:
        return None
    cells_S3 = cursor.taken(12 * count).view("<i4").reshape(count, 3)
    if not (cells_S3[:, 1] == 1).all():
        raise unknown_layout("cells of several sequences")
    counts = cursor.taken(16)
    transposed, layers = (int(number) for number in counts.view("<u4")[:2])
    if transposed > 1:
        raise unknown_layout(f"{transposed} for whether values are transposed")
    keys = [_plane(cursor, count, transposed=False) for _ in range(layers)]
    return CellStream(
        cells_S3, counts, keys, [_plane(cursor, count, transposed=bool(transposed)) for _ in range(layers)]
    )


def _plane(cursor: _StateCursor, cells: int, *, transposed: bool) -> Plane:
    head = cursor.taken(12)
    if not transposed:
        size = int(head[4:].view("<u8")[0])
        return Plane(head, cursor.taken(cells * size).reshape(cells, size))
    size, width = (int(number) for number in head[4:].view("<u4"))
    return Plane(head, cursor.taken(width * cells * size).reshape(width, cells, size))


class _StateCursor:
    """A place in a state's bytes."""

    def __init__(self, state: SavedState, at: int) -> None:
        self._state, self.at = state, at

    def number(self) -> int:
        return int(self.taken(4).view("<u4")[0])

    def taken(self, size: int) -> SavedState:
        """The next bytes: a view."""
        if self.at + size > self._state.size:
            raise unknown_layout("too few bytes")
        self.at += size
        return self._state[self.at - size : self.at]
