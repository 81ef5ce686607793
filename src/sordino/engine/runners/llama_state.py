"""What llama.cpp saves of a sequence, with cells repeated: w cells of one position get w times the attention of one.

That is log w added to the scores of the position, which llama.cpp has no other way to add. The layout is that of
`llama_kv_cache::state_write` in llama-cpp-python 0.3.36, which no header promises: a state of any other layout is refused.

    magic, sequence: uint32. Then for each cache (models with sliding windows have two):
      streams: uint32; for each of them
        cells: uint32, and nothing more where it is 0
        cells x (position: int32, 1: uint32, sequence: int32)
        transposed, layers: uint32
        layers x (type: int32, bytes of a row: uint64, cells x row): the keys
        layers x (the same): the values; transposed ones are (type: int32, bytes of an element: uint32, rows: uint32,
          rows x cells x element)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sordino.errors import ModelError

# A sequence's state, as llama.cpp saves it.
SavedState = NDArray[np.uint8]
# Which of the cells of these positions to write, in which order.
Choice = Callable[[NDArray[np.int32]], NDArray[np.intp]]
_HEAD = 8


def weighted(width: int, first: int, copies: int) -> Choice:
    """Every cell once, but those of the positions from `first` to `width` so many times."""

    def chosen(positions_N: NDArray[np.int32]) -> NDArray[np.intp]:
        _, once = np.unique(positions_N, return_index=True)
        repeated = once[(positions_N[once] >= first) & (positions_N[once] < width)]
        return np.concatenate([once, *[repeated] * (copies - 1)])

    return chosen


def with_cells(state: SavedState, choose: Choice) -> SavedState:
    """The state with the chosen cells. Raises ModelError where the layout is another."""
    reader = _Reader(state)
    parts = [reader.take(_HEAD)]
    while reader.at < state.size:
        streams, taken = reader.number()
        parts.append(taken)
        for _ in range(streams):
            count, taken = reader.number()
            parts += [taken] if count == 0 else _chosen(reader, count, choose)
    return np.concatenate(parts)


def _chosen(reader: _Reader, count: int, choose: Choice) -> list[SavedState]:
    cells_N3 = reader.take(12 * count).view(np.int32).reshape(count, 3)
    if not (cells_N3[:, 1] == 1).all():
        raise _unknown()
    index = choose(cells_N3[:, 0])
    parts = [np.array([len(index)], np.uint32).view(np.uint8), cells_N3[index].reshape(-1).view(np.uint8)]
    transposed, taken = reader.number()
    parts.append(taken)
    layers, taken = reader.number()
    parts.append(taken)
    for plane in range(2 * layers):
        head = reader.take(12)
        parts.append(head)
        if plane >= layers and transposed:
            size, rows = (int(number) for number in head[4:].view(np.uint32))
            parts.append(reader.take(rows * count * size).reshape(rows, count, size)[:, index].reshape(-1))
        else:
            size = int(head[4:].view(np.uint64)[0])
            parts.append(reader.take(count * size).reshape(count, size)[index].reshape(-1))
    return parts


class _Reader:
    def __init__(self, state: SavedState) -> None:
        self._state, self.at = state, 0

    def take(self, size: int) -> SavedState:
        start, self.at = self.at, self.at + size
        if self.at > self._state.size:
            raise _unknown()
        # A copy: parts of other types need their own alignment.
        return self._state[start : self.at].copy()

    def number(self) -> tuple[int, SavedState]:
        """A uint32, and its bytes."""
        taken = self.take(4)
        return int(taken.view(np.uint32)[0]), taken


def _unknown() -> ModelError:
    return ModelError(
        "this version of llama.cpp saves sequences in another way, and hold needs to know it",
        do='turn hold off (0), or install the version that `pip install "sordino[gguf]"` takes',
    )
