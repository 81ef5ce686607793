"""States of llama.cpp's sequences with cells repeated, on bytes that are made by hand: no model and no llama.cpp."""

from __future__ import annotations

import numpy as np
import pytest

from sordino.engine.runners.llama_state import SavedState, weighted, with_cells
from sordino.errors import ModelError

LAYERS, ROW, HEADS = 3, 8, 4


def cache(positions: list[int], *, transposed: bool, streams: int = 1, sequence: int = 0) -> bytes:
    """Keys and values say of which layer and position they are."""
    parts: list[bytes] = [np.uint32(streams).tobytes()]
    for stream in range(streams):
        if stream != sequence:
            parts.append(np.uint32(0).tobytes())
            continue
        parts.append(np.uint32(len(positions)).tobytes())
        parts += [np.array([at, 1, sequence], np.int32).tobytes() for at in positions]
        parts.append(np.array([transposed, LAYERS, 0, 0], np.uint32).tobytes())
        for plane in range(2 * LAYERS):
            values = [[100 * plane + at] * ROW for at in positions]
            if plane >= LAYERS and transposed:
                parts.append(np.array([1, 1, ROW], np.uint32).tobytes())
                parts.append(np.array(values, np.uint64).astype(np.uint8).T.tobytes())
            else:
                parts.append(np.uint32(1).tobytes() + np.uint64(ROW).tobytes())
                parts.append(np.array(values, np.uint64).astype(np.uint8).tobytes())
    return b"".join(parts)


def state(*caches: bytes) -> SavedState:
    return np.frombuffer(b"head" + np.uint32(0).tobytes() + b"".join(caches), np.uint8)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("streams", [1, 3])
def test_cells_of_the_prompt_are_repeated_and_taken_away_again(transposed: bool, streams: int) -> None:
    plain, thrice = [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 1, 2, 3, 1, 2, 3]

    def of(positions: list[int]) -> SavedState:
        # Two caches, as models with sliding windows have.
        one = cache(positions, transposed=transposed, streams=streams, sequence=streams - 1)
        return state(one, one)

    found = with_cells(of(plain), weighted(4, 1, 3))
    assert found.tobytes() == of(thrice).tobytes()
    assert with_cells(found, weighted(4, 1, 2)).tobytes() == of([*plain, 1, 2, 3]).tobytes()
    assert with_cells(found, weighted(4, 1, 1)).tobytes() == of(plain).tobytes()


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_another_layout_is_refused(cut: int) -> None:
    whole = state(cache([0, 1, 2], transposed=False))
    with pytest.raises(ModelError, match="turn hold off"):
        with_cells(whole[:-cut], weighted(2, 1, 2))
    more = whole.copy()
    # Two sequences of a cell.
    more[8 + 8 + 4] = 2
    with pytest.raises(ModelError, match="turn hold off"):
        with_cells(more, weighted(2, 1, 2))
