"""Steps on transformers' modules, for models that have no fused layers.

Families of the parity tests decode all rows of a pool in one pass, under our masks. Any other decoder runs one row at a time, and
makes its own masks.

Shape key: B rows, T text positions, S key positions, N slots of a pool, M rows that run, H key-value heads, C channels of a head,
D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from sordino.engine.runners.kv_pool import Slot, SlotSpan
from sordino.forward.masks import layer_masks
from sordino.forward.prefix import packable
from sordino.forward.weighting import position_bias
from sordino.models.base_model import BaseModel


class SlotCache(DynamicCache):
    """A pool as a cache for one forward pass of a transformers model, which writes into the slots and attends over views of them.

    Either all rows of the pool, of which those in `slots` write one position each and the others' result is dropped; or one row
    alone, which writes any number.
    """

    def __init__(self, slots: Sequence[Slot], *, alone: bool) -> None:
        super().__init__()
        self._pool, self._alone = slots[0].pool, alone
        device = self._pool.tensors[0].device
        self._index_M = torch.tensor([slot.index for slot in slots], device=device)
        self._position_M = torch.tensor([slot.length for slot in slots], device=device)
        self._before = max(slot.length for slot in slots)
        self._first = slots[0].index
        self.written = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        self.written = int(key_states.shape[2])
        return self._write(2 * layer_idx, key_states), self._write(2 * layer_idx + 1, value_states)

    def _write(self, plane: int, states: Tensor) -> Tensor:
        """What is attended over of a plane, the new positions included."""
        rows_NHSC, end = self._pool.plane(plane), self._before + int(states.shape[2])
        if self._alone:
            rows_NHSC[self._first, :, self._before : end] = states[0]
            return rows_NHSC[self._first : self._first + 1, :, :end]
        rows_NHSC[self._index_M, :, self._position_M] = states[self._index_M, :, 0]
        return rows_NHSC[: len(self._pool.numbers), :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._before + self.written

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._before + query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._before


def run(base: BaseModel, spans: Sequence[SlotSpan]) -> list[Tensor]:
    """The hidden states [T, D] at each span's positions. Keys and values are written into the slots."""
    hidden: dict[int, Tensor] = {}
    decoding: dict[int, list[int]] = {}
    for i, span in enumerate(spans):
        if len(span.ids) == 1 and packable(base.network):
            decoding.setdefault(span.slot.pool.capacity, []).append(i)
        else:
            hidden[i] = _prefill(base, span)
    for members in decoding.values():
        hidden |= zip(members, _decode(base, [spans[i] for i in members]), strict=True)
    return [hidden[i] for i in range(len(spans))]


def _decode(base: BaseModel, spans: Sequence[SlotSpan]) -> list[Tensor]:
    """One position for each of some rows of a pool, in one pass over all its slots."""
    pool, slots = spans[0].slot.pool, [span.slot for span in spans]
    ids_B = torch.zeros(len(pool.numbers), dtype=torch.long, device=base.device)
    position_B = torch.zeros_like(ids_B)
    for span in spans:
        ids_B[span.slot.index], position_B[span.slot.index] = span.ids[0], span.slot.length
    key_S = torch.arange(max(slot.length for slot in slots) + 1, device=base.device)
    distance_B1S = (position_B[:, None] - key_S[None, :])[:, None, :]
    prompts = {span.slot.index: span.prompt for span in spans}
    bias_BS = position_bias([prompts.get(row) for row in range(len(ids_B))], position_B, len(key_S), base.dtype)
    masks = layer_masks(base.network, distance_B1S >= 0, distance_B1S, None if bias_BS is None else bias_BS[:, None])
    hidden_B1D = _forward(base, SlotCache(slots, alone=False), ids_B[:, None], position_B[:, None], masks)
    return [hidden_B1D[slot.index] for slot in slots]


def _prefill(base: BaseModel, span: SlotSpan) -> Tensor:
    """The hidden states [T, D] at some positions of one row."""
    device, end = base.device, span.positions.stop
    ids_1T = torch.tensor([list(span.ids)], device=device)
    positions_1T = torch.arange(span.slot.length, end, device=device)[None]
    if packable(base.network):
        distance_1TS = positions_1T[:, :, None] - torch.arange(end, device=device)
        bias_TS = position_bias([span.prompt] * len(span.ids), positions_1T[0], end, base.dtype)
        masks = layer_masks(base.network, distance_1TS >= 0, distance_1TS, bias_TS)
    else:
        # The model's own masks are made from this one: nothing is padding.
        masks = torch.ones(1, end, dtype=torch.long, device=device)
    return _forward(base, SlotCache([span.slot], alone=True), ids_1T, positions_1T, masks)[0]


def _forward(base: BaseModel, cache: SlotCache, ids_BT: Tensor, positions_BT: Tensor, masks: Any) -> Tensor:
    embeds_BTD = base.network.get_input_embeddings()(ids_BT)
    hidden_BTD: Tensor = base.network.base_model(
        inputs_embeds=embeds_BTD, position_ids=positions_BT, attention_mask=masks, past_key_values=cache, use_cache=True
    ).last_hidden_state
    if cache.written != ids_BT.shape[1]:
        raise RuntimeError(f"{base.family}: the model did not use the cache it was given")
    return hidden_BTD
