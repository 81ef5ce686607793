"""A batch as llama.cpp reads it: arrays behind pointers.

Shape key: N positions of a call, D model width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.engine.runners.llama_library import TokenBatch


class BatchBuffers:
    """The arrays of a batch, made once and filled for every call."""

    def __init__(self, size: int) -> None:
        self._ids, self._positions = np.zeros(size, np.int32), np.zeros(size, np.int32)
        self._counts, self._sequences = np.ones(size, np.int32), np.zeros(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        # One sequence a position: a list of pointers to single numbers.
        addresses = self._sequences.ctypes.data + np.arange(size, dtype=np.uintp) * self._sequences.itemsize
        self._lists = addresses.astype(np.uintp)
        self._batch: Any = TokenBatch()
        self._batch.pos = pointer(self._positions, ctypes.c_int32)
        self._batch.n_seq_id = pointer(self._counts, ctypes.c_int32)
        self._batch.seq_id = ctypes.cast(self._lists.ctypes.data, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))
        self._batch.logits = pointer(self._wanted, ctypes.c_int8)
        self._token = pointer(self._ids, ctypes.c_int32)
        self._embeds: NDArray[np.float32] | None = None

    def filled(
        self,
        id_N: Sequence[int] | None,
        embeds_ND: NDArray[np.float32] | None,
        position_N: Sequence[int],
        sequence_N: Sequence[int],
        wanted_N: Sequence[bool],
    ) -> Any:
        """Tokens or vectors, never both: with both, llama.cpp's results are wrong."""
        count = len(position_N)
        self._positions[:count], self._sequences[:count], self._wanted[:count] = position_N, sequence_N, wanted_N
        self._batch.n_tokens = count
        # C reads it until the next call.
        self._embeds = embeds_ND
        if id_N is not None:
            self._ids[:count] = id_N
            self._batch.token, self._batch.embd = self._token, None
        else:
            assert embeds_ND is not None
            self._batch.token, self._batch.embd = None, pointer(embeds_ND, ctypes.c_float)
        return self._batch


def pointer(array: NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))
