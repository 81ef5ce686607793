"""Llama's decoder layers for rows that write: every position of a step, of every row, in one product a weight.

As `frozen_llama`, without gradients: the same numbers as transformers' modules. Positions of all rows lie side by side [N, D]; only
attention knows rows. Rows that decode attend together, a pool at a time, over views of its slots: the query heads of
a group are queries of one key-value head, so no key is copied. Rows that prefill attend over what is before, without
a mask, and over their new positions, causally; softmax over the whole is the parts weighted by exp(lse_part - lse).

Shape key: N positions of a step, M rows that take one position, D model width, H key-value heads, G query heads for each,
C channels, T positions of a row that prefills, S positions that are seen, R rows of a pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu
from transformers import PreTrainedModel

from sordino import few_rows
from sordino.engine.key_values import Pool, Slot
from sordino.frozen_llama import Layer, layers_of, weights_of

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class DecodeRows:
    """Rows of one pool that decode: one position each, in the pool's order.

    at: their places among the step's positions, side by side. whole: whether they are all rows of the pool.
    """

    pool: Pool
    at: slice
    index_M: Tensor
    position_M: Tensor
    seen: int
    mask_R1GS: Tensor | None
    whole: bool

    @staticmethod
    def of(start: int, slots: Sequence[Slot], groups: int) -> DecodeRows:
        pool = slots[0].pool
        index_M, position_M = torch.tensor([p.index for p in slots]), torch.tensor([p.length for p in slots])
        seen = max(p.length for p in slots) + 1
        # Rows of the pool that do not write now have no query: they see one position, and nobody looks at the result.
        last_R = torch.zeros(len(pool.numbers), dtype=torch.long).index_copy_(0, index_M, position_M)
        hidden_RS = torch.arange(seen)[None, :] > last_R[:, None]
        mask_R1GS = None
        if bool(hidden_RS.any()):
            lowest = torch.finfo(pool.shape.dtype).min
            mask_RS = torch.zeros(hidden_RS.shape, dtype=pool.shape.dtype).masked_fill_(hidden_RS, lowest)
            mask_R1GS = mask_RS[:, None, None, :].expand(-1, 1, groups, -1)
        at = slice(start, start + len(slots))
        return DecodeRows(pool, at, index_M, position_M, seen, mask_R1GS, len(slots) == len(pool.numbers))


@dataclass(frozen=True)
class PrefillRow:
    """A row that prefills: `at` among the step's positions, from position `start` of the row on."""

    slot: Slot
    at: slice
    start: int


@dataclass(frozen=True)
class Norm:
    """RMS norm, x / sqrt(mean(x^2) + eps) * weight, as x * w / hypot(|x|, c) with w = sqrt(D) weight and c = sqrt(D eps)."""

    w_D: Tensor
    c: Tensor

    @staticmethod
    def of(weight_D: Tensor, eps: float) -> Norm:
        width = weight_D.shape[0]
        return Norm(weight_D * width**0.5, torch.tensor((width * eps) ** 0.5, dtype=weight_D.dtype))

    def __call__(self, x_ND: Tensor) -> Tensor:
        length_N1 = torch.linalg.vector_norm(x_ND, dim=1, keepdim=True)
        normed_ND: Tensor = (x_ND * self.w_D).div_(length_N1.hypot_(self.c))
        return normed_ND


@dataclass(frozen=True)
class Llama:
    """The network's parts, looked up once. norms: of each layer, before attention and before its feed-forward part. groups: G."""

    model: Any
    layers: tuple[Layer, ...]
    norms: tuple[tuple[Norm, Norm], ...]
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
        config: Any = network.config
        model: Any = network.base_model
        layers = tuple(weights_of(layer) for layer in layers_of(network))
        return Llama(
            model,
            layers,
            tuple((Norm.of(layer.norm1, layer.eps), Norm.of(layer.norm2, layer.eps)) for layer in layers),
            Norm.of(model.norm.weight, model.norm.variance_epsilon),
            int(config.num_attention_heads // config.num_key_value_heads),
        )


def run(
    llama: Llama,
    embeds_ND: Tensor,
    positions_N: Tensor,
    decoding: Sequence[DecodeRows],
    prefilling: Sequence[PrefillRow],
) -> Tensor:
    """Hidden states behind the final norm [N, D]. Keys and values are written into the slots."""
    count = len(positions_N)
    across = few_rows.across(count)
    spare = (few_rows.better_width(count) if across else count) - count
    # Positions that nobody looks at.
    embeds_ND = torch.cat([embeds_ND, embeds_ND[-1:].expand(spare, -1)]) if spare else embeds_ND
    positions_N = torch.cat([positions_N, positions_N[-1:].expand(spare)]) if spare else positions_N
    turn_N1C = _turn(llama, embeds_ND, positions_N)
    hidden_ND = embeds_ND
    for index, layer in enumerate(llama.layers):
        hidden_ND = _layer(index, layer, llama.norms[index], hidden_ND, turn_N1C, decoding, prefilling, across)
    return llama.last_norm(hidden_ND[:count])


def _layer(
    index: int,
    weights: Layer,
    norms: tuple[Norm, Norm],
    x_ND: Tensor,
    turn_N1C: tuple[Tensor, Tensor],
    decoding: Sequence[DecodeRows],
    prefilling: Sequence[PrefillRow],
    across: bool,
) -> Tensor:
    normed_ND = norms[0](x_ND)
    queries, keys, values = (
        _times(normed_ND, weight, across).unflatten(1, (-1, weights.head_width))
        for weight in (weights.q, weights.k, weights.v)
    )
    queries, keys = _turned(queries, *turn_N1C), _turned(keys, *turn_N1C)
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
    # x_ND first: a sum lies in memory as its first part does, and W @ x.t() is the quick way round only where x is contiguous.
    h_ND = x_ND + _times(mixed_NHC.flatten(1), weights.o, across)
    normed_ND = norms[1](h_ND)
    fed_NF = silu(_times(normed_ND, weights.gate, across)).mul_(_times(normed_ND, weights.up, across))
    return h_ND + _times(fed_NF.contiguous(), weights.down, across)


def _times(x_ND: Tensor, weight_FD: Tensor, across: bool) -> Tensor:
    """x @ W.T [N, F]; across: the other way round, so that it lies in memory as [F, N]."""
    return (weight_FD @ x_ND.t()).t() if across else linear(x_ND, weight_FD)


def _turn(llama: Llama, embeds_ND: Tensor, positions_N: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [N, 1, C] of the positions' angles; the first half of the sines negative, for `_turned`."""
    cos_1NC, sin_1NC = llama.model.rotary_emb(embeds_ND[None], positions_N[None])
    half = cos_1NC.shape[-1] // 2
    sin_NC = torch.cat([-sin_1NC[0, :, :half], sin_1NC[0, :, half:]], dim=-1)
    return cos_1NC[0, :, None, :].contiguous(), sin_NC[:, None, :]


def _turned(heads_NHC: Tensor, cos_N1C: Tensor, sin_N1C: Tensor) -> Tensor:
    """Rotary positions: (x1, x2) cos + (-x2, x1) sin; contiguous, as attention wants it."""
    heads_NHC = heads_NHC.contiguous()
    return torch.addcmul(heads_NHC * cos_N1C, heads_NHC.roll(heads_NHC.shape[-1] // 2, -1), sin_N1C)


def _attend_decode(index: int, rows: DecodeRows, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """[M, H * G, C] of queries [M, H * G, C], keys and values [M, H, C]."""
    keys_NHSC, values_NHSC = rows.pool.plane(2 * index), rows.pool.plane(2 * index + 1)
    keys_NHSC[rows.index_M, :, rows.position_M] = keys
    values_NHSC[rows.index_M, :, rows.position_M] = values
    count, heads = len(rows.pool.numbers), keys.shape[1]
    queries_RHGC = queries.unflatten(1, (heads, -1))
    if not rows.whole:
        # A row that does not write asks nothing.
        queries_RHGC = queries_RHGC.new_zeros(count, *queries_RHGC.shape[1:]).index_copy_(0, rows.index_M, queries_RHGC)
    mixed_RHGC: Tensor = _attend(
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
    mixed_1ATC: Tensor
    lse_1AT: Tensor
    width, heads = keys.shape[:2]
    slot, end = row.slot, row.start + width
    keys_HSC, values_HSC = (slot.pool.plane(2 * index + kind)[slot.index] for kind in (0, 1))
    keys_HSC[:, row.start : end] = keys.transpose(0, 1)
    values_HSC[:, row.start : end] = values.transpose(0, 1)
    groups = queries.shape[1] // heads
    queries_1ATC = queries.transpose(0, 1)[None]
    own_keys, own_values = (of.transpose(0, 1)[None].repeat_interleave(groups, dim=1) for of in (keys, values))
    mixed_1ATC, lse_1AT = _attend(queries_1ATC, own_keys, own_values, is_causal=True, scale=scale)
    if row.start:
        grouped_1HSC = queries_1ATC.reshape(1, heads, groups * width, -1)
        front, front_lse = _attend(
            grouped_1HSC,
            keys_HSC[None, :, : row.start],
            values_HSC[None, :, : row.start],
            is_causal=False,
            scale=scale,
        )
        front_1ATC, front_lse_1AT = front.reshape(mixed_1ATC.shape), front_lse.reshape(lse_1AT.shape)
        lse = torch.logaddexp(lse_1AT, front_lse_1AT)
        mixed_1ATC = mixed_1ATC * (lse_1AT - lse).exp()[..., None] + front_1ATC * (front_lse_1AT - lse).exp()[..., None]
    return mixed_1ATC[0].transpose(0, 1)
