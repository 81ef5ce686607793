"""Llama's decoder layers for the rows of a step: every position of every row in one product a weight.

The parts of a layer come from `llama_layers`; there are no gradients. The positions of all rows are concatenated [N, D]; only
attention tells rows apart. Rows that decode attend together, a pool at a time, over views of its slots: the query heads of a group
act as queries of one key-value head, so no key is copied. A row in its prefill attends to earlier positions without a mask, and to
its new positions causally.

Shape key: N positions of a step, M rows that decode, D model width, H key-value heads, G query heads for each, C channels,
T positions of a row that prefills, S key positions, R rows of a pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from sordino.engine.runners.kv_pool import Pool, Slot, SlotSpan
from sordino.forward.llama_layers import (
    Layer,
    Norm,
    Rotation,
    Weight,
    attend,
    gated,
    layers_of,
    merged,
    weights_of,
)
from sordino.forward.small_matmul import times, widened
from sordino.forward.weighting import position_bias
from sordino.models.base_model import BaseModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class DecodeRows:
    """Rows of one pool that decode: one position each, in the pool's order.

    at: their slice of the step's positions. seen: how many key positions the longest row has. whole: whether they are all rows of
    the pool.
    """

    pool: Pool
    at: slice
    index_M: Tensor
    position_M: Tensor
    seen: int
    mask_R1GS: Tensor | None
    whole: bool

    @staticmethod
    def of(start: int, spans: Sequence[SlotSpan], groups: int) -> DecodeRows:
        slots = [span.slot for span in spans]
        pool = slots[0].pool
        index_M, position_M = torch.tensor([p.index for p in slots]), torch.tensor([p.length for p in slots])
        seen = max(p.length for p in slots) + 1
        # Rows of the pool that do not run now have no query: they attend to one position, and their result is dropped.
        last_R = torch.zeros(len(pool.numbers), dtype=torch.long).index_copy_(0, index_M, position_M)
        hidden_RS = torch.arange(seen)[None, :] > last_R[:, None]
        bias_MS = position_bias([span.prompt for span in spans], position_M, seen, pool.shape.dtype)
        mask_R1GS = None
        if bias_MS is not None or bool(hidden_RS.any()):
            lowest = torch.finfo(pool.shape.dtype).min
            mask_RS = torch.zeros(hidden_RS.shape, dtype=pool.shape.dtype).masked_fill_(hidden_RS, lowest)
            if bias_MS is not None:
                # Where a row attends to nothing, no prompt is: its positions are after the row's end.
                mask_RS[index_M] += bias_MS
            mask_R1GS = mask_RS[:, None, None, :].expand(-1, 1, groups, -1)
        at = slice(start, start + len(slots))
        return DecodeRows(pool, at, index_M, position_M, seen, mask_R1GS, len(slots) == len(pool.numbers))


@dataclass(frozen=True)
class PrefillRow:
    """A row that prefills.

    at: its slice of the step's positions. start: the row's position of the first of them. mask_11AS: added to the scores over
    what is ahead of them, for the query heads of a group one after another, A = G * T; None: nothing.
    """

    slot: Slot
    at: slice
    start: int
    mask_11AS: Tensor | None

    @staticmethod
    def of(start: int, span: SlotSpan, groups: int) -> PrefillRow:
        width, slot = len(span.ids), span.slot
        bias_TS = None
        if span.prompt is not None:
            position_T = torch.arange(slot.length, slot.length + width)
            bias_TS = position_bias([span.prompt] * width, position_T, slot.length, slot.pool.shape.dtype)
        mask_11AS = None if bias_TS is None else bias_TS.repeat(groups, 1)[None, None]
        return PrefillRow(slot, slice(start, start + width), slot.length, mask_11AS)


@dataclass(frozen=True)
class Llama:
    """The network's parts, looked up once. groups: G, query heads for each key-value head."""

    network: PreTrainedModel
    layers: tuple[Layer[Weight], ...]
    last_norm: Norm
    groups: int

    @property
    def planes(self) -> tuple[tuple[int, int], ...]:
        """Heads and channels of the keys, and of the values, of each layer."""
        return tuple(
            (weight.shape[0] // layer.head_width, layer.head_width)
            for layer in self.layers
            for weight in (layer.k, layer.v)
        )

    @staticmethod
    def of(network: PreTrainedModel) -> Llama:
        config, model = network.config, cast(Any, network.base_model)
        return Llama(
            network,
            tuple(weights_of(layer) for layer in layers_of(network)),
            Norm.of(model.norm.weight, model.norm.variance_epsilon),
            int(config.num_attention_heads // config.num_key_value_heads),
        )


def run(llama: Llama, base: BaseModel, spans: Sequence[SlotSpan]) -> list[Tensor]:
    """The hidden states [T, D] at each span's positions, after the final norm. Keys and values are written into the slots."""
    # First the rows that decode, by pool and slot, then those that prefill.
    order = sorted(range(len(spans)), key=lambda i: (*_kind(spans[i]), spans[i].slot.index))
    ids = [token for i in order for token in spans[i].ids]
    positions = [position for i in order for position in spans[i].positions]
    decoding: list[DecodeRows] = []
    prefilling: list[PrefillRow] = []
    places: dict[int, slice] = {}
    start = 0
    for (prefills, _), group in groupby(order, key=lambda i: _kind(spans[i])):
        members = list(group)
        if not prefills:
            decoding.append(DecodeRows.of(start, [spans[i] for i in members], llama.groups))
        for i in members:
            if prefills:
                prefilling.append(PrefillRow.of(start, spans[i], llama.groups))
            places[i] = slice(start, start + len(spans[i].ids))
            start = places[i].stop
    hidden_ND = _layers(llama, base.embed(torch.tensor(ids)), torch.tensor(positions), decoding, prefilling)
    return [hidden_ND[places[i]] for i in range(len(spans))]


def _kind(span: SlotSpan) -> tuple[bool, int]:
    """What attends together: rows that decode, a pool at a time; rows that prefill come last."""
    return len(span.ids) > 1, span.slot.pool.capacity


def _layers(
    llama: Llama,
    embeds_ND: Tensor,
    positions_N: Tensor,
    decoding: Sequence[DecodeRows],
    prefilling: Sequence[PrefillRow],
) -> Tensor:
    """Hidden states after the final norm [N, D]."""
    count = len(positions_N)
    # Kernels of packed weights take time by the row.
    hidden_ND = widened(embeds_ND) if isinstance(llama.layers[0].q, Tensor) else embeds_ND
    spare = len(hidden_ND) - count
    positions_N = torch.cat([positions_N, positions_N[-1:].expand(spare)]) if spare else positions_N
    rotation = Rotation.of(llama.network, hidden_ND[None], positions_N[None], heads_at=2).first()
    for index, layer in enumerate(llama.layers):
        hidden_ND = _layer(index, layer, hidden_ND, rotation, decoding, prefilling)
    return llama.last_norm(hidden_ND[:count])[0]


def _layer(
    index: int,
    weights: Layer[Weight],
    x_ND: Tensor,
    rotation: Rotation,
    decoding: Sequence[DecodeRows],
    prefilling: Sequence[PrefillRow],
) -> Tensor:
    normed_ND, _ = weights.norm1(x_ND)
    queries, keys, values = (
        times(normed_ND, weight).unflatten(1, (-1, weights.head_width)) for weight in (weights.q, weights.k, weights.v)
    )
    queries, keys = (rotation.turned(heads.contiguous()) for heads in (queries, keys))
    mixed = [
        _attend_decode(index, rows, queries[rows.at], keys[rows.at], values[rows.at], weights.scale)
        for rows in decoding
    ]
    mixed += [
        _attend_prefill(index, row, queries[row.at], keys[row.at], values[row.at], weights.scale) for row in prefilling
    ]
    if spare := len(x_ND) - sum(map(len, mixed)):
        mixed.append(queries[:spare])
    mixed_NHC = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
    # x_ND first: a sum has the memory layout of its first operand, and W @ x.t() is fast only for a contiguous x.
    h_ND = x_ND + times(mixed_NHC.flatten(1), weights.o)
    normed_ND, _ = weights.norm2(h_ND)
    fed_NF = gated(times(normed_ND, weights.gate), times(normed_ND, weights.up))
    return h_ND + times(fed_NF.contiguous(), weights.down)


def _attend_decode(index: int, rows: DecodeRows, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """[M, H * G, C] of queries [M, H * G, C], keys and values [M, H, C]."""
    keys_NHSC, values_NHSC = rows.pool.plane(2 * index), rows.pool.plane(2 * index + 1)
    keys_NHSC[rows.index_M, :, rows.position_M] = keys
    values_NHSC[rows.index_M, :, rows.position_M] = values
    count, heads = len(rows.pool.numbers), keys.shape[1]
    queries_RHGC = queries.unflatten(1, (heads, -1))
    if not rows.whole:
        # A row that does not run has no query.
        queries_RHGC = queries_RHGC.new_zeros(count, *queries_RHGC.shape[1:]).index_copy_(0, rows.index_M, queries_RHGC)
    mixed_RHGC: Tensor = attend(
        queries_RHGC,
        keys_NHSC[:count, :, : rows.seen],
        values_NHSC[:count, :, : rows.seen],
        is_causal=False,
        attn_mask=rows.mask_R1GS,
        scale=scale,
    )[0]
    return (mixed_RHGC if rows.whole else mixed_RHGC[rows.index_M]).flatten(1, 2)


def _attend_prefill(index: int, row: PrefillRow, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """[T, H * G, C] of queries [T, H * G, C], keys and values [T, H, C]."""
    width, heads = keys.shape[:2]
    slot, end = row.slot, row.start + width
    keys_HSC, values_HSC = (slot.pool.plane(2 * index + kind)[slot.index] for kind in (0, 1))
    keys_HSC[:, row.start : end] = keys.transpose(0, 1)
    values_HSC[:, row.start : end] = values.transpose(0, 1)
    groups = queries.shape[1] // heads
    queries_1ATC = queries.transpose(0, 1)[None]
    own_keys, own_values = (of.transpose(0, 1)[None].repeat_interleave(groups, dim=1) for of in (keys, values))
    mixed_1ATC: Tensor
    mixed_1ATC, lse_1AT = attend(queries_1ATC, own_keys, own_values, is_causal=True, scale=scale)
    if row.start:
        # The query heads of a group act as queries of one key-value head: no key is copied.
        grouped_1HSC = queries_1ATC.reshape(1, heads, groups * width, -1)
        before = (of[None, :, : row.start] for of in (keys_HSC, values_HSC))
        front, front_lse = attend(grouped_1HSC, *before, is_causal=False, attn_mask=row.mask_11AS, scale=scale)
        mixed_1ATC, _ = merged(
            (mixed_1ATC, lse_1AT), (front.reshape(mixed_1ATC.shape), front_lse.reshape(lse_1AT.shape))
        )
    return mixed_1ATC[0].transpose(0, 1)
