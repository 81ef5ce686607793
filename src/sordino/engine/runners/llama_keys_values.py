"""The bytes of one sequence's state in llama.cpp, with other keys and values in place of its own.

Nothing in llama.cpp's interface writes keys and values; its saved state holds them. So a sequence runs tokens at the prompt's
positions, its state is saved, and the numbers in it are replaced. Source: `state_write` of llama-kv-cache.cpp and
llama-kv-cache-iswa.cpp. Everything is checked: a layout of another version is refused, never misread.

Layout: 8 bytes; then one cache, or where some layers have a sliding window two, first of the layers without. A cache is the number
of streams, and for each the number of its cells. Where that is not 0: for each cell its position, the number of its sequences and
those; whether values are transposed; the number of layers; keys, then values. For each layer of keys: type (int32), bytes of a row
(uint64), a row for each cell. Values likewise; transposed: type (int32), bytes of a number (uint32), width (uint32), and for each
channel a number for each cell.

Shape key: L layers, H key-value heads, P = N positions, C channels of a head, W = H * C, S cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.engine.runners.llama_state import SavedState
from sordino.errors import ModelError
from sordino.prompts.prompt import KeysValues

_HEAD = 8
# ggml's types of numbers that are stored one by one.
_TYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}


def with_keys_values(
    state: SavedState,
    given: KeysValues,
    architecture: str,
    *,
    first: int,
    windowed: Sequence[bool] | None,
) -> SavedState:
    """A copy of a saved state that holds these keys and values, as transformers has them, from position `first` on.

    architecture: as the model's file says it. windowed: for each layer whether it has a sliding window; None where the model has
    none. Raises ModelError.
    """
    keys = [_flat(_rotated(key_HPC, architecture)) for key_HPC in given.keys_LHPC]
    values = [_flat(value_HPC) for value_HPC in given.values_LHPC]
    cursor = _Cursor(state.copy(), _HEAD)
    layers = list(range(len(keys)))
    parts = [layers] if windowed is None else [[at for at in layers if windowed[at] == wide] for wide in (False, True)]
    for part in parts:
        numbers = _Numbers([keys[at] for at in part], [values[at] for at in part], range(first, first + len(keys[0])))
        # Cells that the text after them cannot see are not saved.
        _replace(cursor, numbers, whole=part is parts[0])
    if cursor.at != len(state):
        raise _unknown(f"{len(state) - cursor.at} bytes more")
    return cursor.data


def _rotated(keys_HPC: NDArray[np.float32], architecture: str) -> NDArray[np.float32]:
    """With the channels in llama.cpp's order.

    It rotates neighbouring channels of Llama's heads, where transformers rotates the halves of a head; its converter reorders the
    weights' rows for that, and transformers reads them in the old order. Other architectures are rotated alike in both.
    """
    if architecture != "llama":
        return keys_HPC
    H, P, C = keys_HPC.shape
    return keys_HPC.reshape(H, P, 2, C // 2).swapaxes(2, 3).reshape(H, P, C)


def _flat(side_HPC: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, W]"""
    return side_HPC.swapaxes(0, 1).reshape(side_HPC.shape[1], -1)


class _Cursor:
    """A place in a state's bytes."""

    def __init__(self, data: SavedState, at: int) -> None:
        self.data, self.at = data, at

    def number(self, kind: str) -> int:
        dtype = np.dtype(kind)
        return int(self.taken(dtype.itemsize).view(dtype)[0])

    def taken(self, size: int) -> SavedState:
        """The next bytes: a view, which may be written to."""
        if self.at + size > len(self.data):
            raise _unknown("too few bytes")
        self.at += size
        return self.data[self.at - size : self.at]


@dataclass(frozen=True, eq=False)
class _Numbers:
    """Keys and values, [N, W] for each layer of one cache, and the positions that they are of."""

    keys: Sequence[NDArray[np.float32]]
    values: Sequence[NDArray[np.float32]]
    positions: range


def _replace(cursor: _Cursor, numbers: _Numbers, *, whole: bool) -> None:
    """In one cache. The cells that are no position of the prompt (BOS in front) stay. whole: all positions must be there."""
    found = 0
    for _ in range(cursor.number("<u4")):
        cells = cursor.number("<u4")
        if not cells:
            continue
        position_S = np.array([_position(cursor) for _ in range(cells)])
        own_S = (position_S >= numbers.positions.start) & (position_S < numbers.positions.stop)
        place_S = position_S[own_S] - numbers.positions.start
        found += len(place_S)
        transposed, layers = cursor.number("<u4"), cursor.number("<u4")
        if transposed > 1 or layers != len(numbers.keys):
            raise _unknown(f"{layers} layers")
        for key_NW in numbers.keys:
            _write(_rows(cursor, cells), own_S, key_NW[place_S])
        for value_NW in numbers.values:
            _write(_columns(cursor, cells).T if transposed else _rows(cursor, cells), own_S, value_NW[place_S])
    if whole and found != len(numbers.positions):
        raise _unknown(f"{found} of {len(numbers.positions)} positions")


def _write(stored_SW: NDArray[Any], own_S: NDArray[np.bool_], given_NW: NDArray[np.float32]) -> None:
    if stored_SW.shape[1] != given_NW.shape[1]:
        raise _unknown(f"rows of {stored_SW.shape[1]} numbers")
    stored_SW[own_S] = given_NW


def _position(cursor: _Cursor) -> int:
    position, sequences = cursor.number("<i4"), cursor.number("<u4")
    if sequences != 1:
        raise _unknown(f"a cell of {sequences} sequences")
    cursor.taken(4)
    return position


def _rows(cursor: _Cursor, cells: int) -> NDArray[Any]:
    """[S, W]: a view of a layer's numbers, a row for each cell."""
    dtype, size = _type(cursor.number("<i4")), cursor.number("<u8")
    return cursor.taken(cells * size).view(dtype).reshape(cells, -1)


def _columns(cursor: _Cursor, cells: int) -> NDArray[Any]:
    """[W, S]: as `_rows`, transposed."""
    dtype, size, width = _type(cursor.number("<i4")), cursor.number("<u4"), cursor.number("<u4")
    if size != dtype.itemsize:
        raise _unknown(f"numbers of {size} bytes")
    return cursor.taken(width * cells * size).view(dtype).reshape(width, cells)


def _type(number: int) -> np.dtype[Any]:
    if number not in _TYPES:
        raise _unknown(f"numbers of type {number}")
    return _TYPES[number]


def _unknown(got: str) -> ModelError:
    return ModelError(
        "this version of llama.cpp saves its state in another way, so it cannot run KV prompts",
        got=got,
        do="serve the model with another runner",
    )
