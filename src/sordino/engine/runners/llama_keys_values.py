"""KV prompts in llama.cpp: a sequence runs tokens at the prompt's positions, and its saved state gets the prompt's numbers.

Shape key: L layers, H key-value heads, P = N positions, C channels of a head, W = H * C, S cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.engine.runners.llama_state import CellStream, SavedState, caches_of, unknown_layout
from sordino.prompts.prompt import KeysValues


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
    layers, positions = list(range(len(keys))), range(first, first + len(keys[0]))
    parts = [layers] if windowed is None else [[at for at in layers if windowed[at] == wide] for wide in (False, True)]
    written = state.copy()
    caches = caches_of(written)
    if len(caches) != len(parts):
        raise unknown_layout(f"{len(caches)} caches")
    for streams, part in zip(caches, parts, strict=True):
        numbers = [keys[at] for at in part] + [values[at] for at in part]
        found = sum(_replace(stream, numbers, positions) for stream in streams if stream is not None)
        # Of layers with a window, cells that the text after them cannot see are not saved.
        if part is parts[0] and found != len(positions):
            raise unknown_layout(f"{found} of {len(positions)} positions")
    return written


def _replace(stream: CellStream, numbers: Sequence[NDArray[np.float32]], positions: range) -> int:
    """Write the numbers [N, W] of each plane into the cells of these positions; other cells (BOS in front) stay. How many cells."""
    planes = [*stream.keys, *stream.values]
    if len(planes) != len(numbers):
        raise unknown_layout(f"{len(stream.keys)} layers")
    if any(stream.counts.view("<u4")[2:]):
        raise unknown_layout("channels that are rotated")
    position_S = stream.cells_S3[:, 0]
    own_S = (position_S >= positions.start) & (position_S < positions.stop)
    place_S = position_S[own_S] - positions.start
    for plane, given_NW in zip(planes, numbers, strict=True):
        stored_SW: NDArray[Any] = plane.numbers()
        if stored_SW.shape[1] != given_NW.shape[1]:
            raise unknown_layout(f"rows of {stored_SW.shape[1]} numbers")
        stored_SW[own_S] = given_NW[place_S]
    return len(place_S)


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
