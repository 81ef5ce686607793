"""A shelf of keys and values as transformers' models take it: they write into the shelf and attend over views of it.

Shape key: M rows that run, N rows of the shelf, H key-value heads, T positions of the text, S positions that are seen, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from sordino.engine.runners.kv_pool import Place, Shelf


class ShelfCache(DynamicCache):
    """For one forward pass.

    Either all rows of the shelf, of which those in `places` write one position each (the others' is thrown away); or one row
    alone, which writes a stretch of any length.
    """

    def __init__(self, shelf: Shelf, places: Sequence[Place], *, alone: bool) -> None:
        super().__init__()
        self._shelf, self._alone = shelf, alone
        self._index_M = torch.tensor([place.index for place in places], device=shelf.tensor.device)
        self._position_M = torch.tensor([place.length for place in places], device=shelf.tensor.device)
        self._before = max(place.length for place in places)
        self.written = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        width = int(key_states.shape[2])
        self.written = width
        end = self._before + width
        found = []
        for kind, states in enumerate((key_states, value_states)):
            rows_NHSC = self._shelf.tensor[layer_idx, kind]
            if self._alone:
                index = int(self._index_M)
                rows_NHSC[index, :, self._before : end] = states[0]
                found.append(rows_NHSC[index : index + 1, :, :end])
            else:
                rows_NHSC[self._index_M, :, self._position_M] = states[self._index_M, :, 0]
                found.append(rows_NHSC[: len(self._shelf.numbers), :, :end])
        return found[0], found[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._before + self.written

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._before + query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._before
