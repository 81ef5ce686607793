"""Llama's decoder layers with the backward pass written out: the same numbers as transformers' modules, in less time.

The weights are frozen, so a layer needs gradients only of its input and of the keys and values ahead of the text. By hand that
takes half the memory traffic of autograd: element-wise work happens in place, cheap activations are recomputed instead of stored,
and keys are not copied to follow a prefix.

The parts of a layer come from `llama_layers`. Attention has two parts: text over its prefix (no mask), and text over itself
(causal: the kernel skips what lies above the diagonal). In the backward pass each part gets the whole's output and log-sum-exp,
from which the kernel recomputes exactly that part's weights.

Gate and up are held as [F, N]: products that are wider than deep run 5 to 10 % faster that way (MKL on AVX2).

For Llama's family on a CPU with plain linear layers (`runs`). tests/parity compares it with transformers.

Shape key: B rows, T positions, N = B * T, P prefix positions, D model width, H key-value heads, G query heads for each of them,
C channels of a head, F feed-forward width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sordino.forward.llama_layers import Layer, Rotation, attend, attend_backward, gated, layers_of, merged, weights_of
from sordino.forward.masks import AttentionMasks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Block:
    """Rows of one width: inputs_embeds [B, T, D], position ids [B, T], and their masks."""

    embeds_BTD: Tensor
    positions_BT: Tensor
    masks: AttentionMasks


@dataclass(frozen=True)
class _Placed:
    """Where a block's positions are among all, its shape, rotation and masks."""

    at: slice
    rows: int
    width: int
    rotation: Rotation
    masks: AttentionMasks

    def heads(self, flat_N: Tensor, head_width: int) -> Tensor:
        """The block's part of [N, H * C] as [B, T, H, C]."""
        return flat_N[self.at].view(self.rows, self.width, -1, head_width)

    def flat(self, heads_BTHC: Tensor) -> Tensor:
        return heads_BTHC.reshape(self.rows * self.width, -1)


class _Attended(NamedTuple):
    """A block's attention: queries [B, H*G, T, C], keys and values [B, H, T, C], its output and its log-sum-exp."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    mixed: Tensor
    lse: Tensor


def decode(
    network: PreTrainedModel, text: Block, prefix: list[tuple[Tensor, Tensor]] | None = None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Hidden states after the final norm [B, T, D], and every layer's own keys and values [B, H, T, C].

    prefix: every layer's keys and values [B or 1, H, P, C] ahead of the text; None or P = 0 without any. Gradients flow to the
    text's embeddings and to `prefix`.
    """
    (hidden_BTD,), own = _run(network, [text], None, prefix)
    return hidden_BTD, own


def decode_together(
    network: PreTrainedModel, prompts: Block, text: Block, prompt_B: Tensor
) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """Prompts, and rows of text with one of them each, together in every product.

    A product of a prompt's few rows takes nearly as long as one of a hundred, because it reads all weights. Returns the prompts'
    hidden states [K, P, D], the text's [B, T, D], and every layer's keys and values of the prompts [K, H, P, C]. Gradients flow
    to both blocks' embeddings.
    """
    (hidden_KPD, hidden_BTD), own = _run(network, [prompts, text], prompt_B, None)
    return hidden_KPD, hidden_BTD, own


def _run(
    network: PreTrainedModel, blocks: list[Block], prompt_B: Tensor | None, prefix: list[tuple[Tensor, Tensor]] | None
) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    model: Any = network.base_model
    placed, start = [], 0
    for block in blocks:
        rows, width, _ = block.embeds_BTD.shape
        rotation = Rotation.of(network, block.embeds_BTD, block.positions_BT, heads_at=1)
        placed.append(_Placed(slice(start, start + rows * width), rows, width, rotation, block.masks))
        start += rows * width
    hidden_ND, own = _joined([block.embeds_BTD.flatten(0, 1) for block in blocks]), []
    run: Any = _DecoderLayer.apply
    for index, layer in enumerate(layers_of(network)):
        keys, values = prefix[index] if prefix else (None, None)
        hidden_ND, own_keys, own_values = run(hidden_ND, keys, values, weights_of(layer), placed, prompt_B)
        own.append((own_keys, own_values))
    hidden_ND = model.norm(hidden_ND)
    return [hidden_ND[block.at].unflatten(0, (block.rows, block.width)) for block in placed], own


class _DecoderLayer(torch.autograd.Function):
    """One layer over one block of rows, or over the prompts and the rows of text that follow them."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        prefix_keys: Tensor | None,
        prefix_values: Tensor | None,
        layer: Layer[Tensor],
        blocks: list[_Placed],
        prompt_B: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        normed_ND, length1_N1 = layer.norm1(x_ND)
        flat = [normed_ND @ weight.t() for weight in (layer.q, layer.k, layer.v)]
        attended: list[_Attended] = []
        for block in blocks:
            queries, keys, values = (block.heads(of, layer.head_width) for of in flat)
            queries, keys = (block.rotation.turned(heads.transpose(1, 2)) for heads in (queries, keys))
            values = values.transpose(1, 2).contiguous()
            parts = _parts(_prefix_of(attended, prompt_B, prefix_keys, prefix_values), (keys, values), block.masks)
            attended.append(_Attended(queries, keys, values, *_attention(queries, parts, layer.scale)))
        mixed_N = _joined([block.flat(of.mixed.transpose(1, 2)) for block, of in zip(blocks, attended, strict=True)])
        h_ND = torch.addmm(x_ND, mixed_N, layer.o.t())
        normed_ND, length2_N1 = layer.norm2(h_ND)
        gate_FN, up_FN = layer.gate @ normed_ND.t(), layer.up @ normed_ND.t()
        y_ND = torch.addmm(h_ND, gated(gate_FN, up_FN).t(), layer.down.t())
        ctx.layer, ctx.blocks = layer, blocks
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            *(x_ND, length1_N1, h_ND, length2_N1, gate_FN, up_FN, prefix_keys, prefix_values, prompt_B),
            *(tensor for of in attended for tensor in of),
        )
        return y_ND, attended[0].keys, attended[0].values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        layer, blocks = ctx.layer, ctx.blocks
        x_ND, length1_N1, h_ND, length2_N1, gate_FN, up_FN, prefix_keys, prefix_values, prompt_B, *rest = (
            ctx.saved_tensors
        )
        attended = [_Attended(*rest[at : at + 5]) for at in range(0, len(rest), 5)]
        grad_y_ND = torch.zeros_like(x_ND) if grads[0] is None else grads[0]
        grad_h_ND = _feed_forward_backward(grad_y_ND, layer, h_ND, length2_N1, gate_FN, up_FN).add_(grad_y_ND)
        grad_mixed_N = grad_h_ND @ layer.o
        flat: list[list[Tensor]] = []
        grad_prefix: _Pair = (None, None)
        # The text first: it adds to the gradients of the prompts' keys and values.
        grad_prompts: _Pair = (grads[1], grads[2])
        for index in reversed(range(len(blocks))):
            block, of = blocks[index], attended[index]
            parts = _parts(
                _prefix_of(attended[:index], prompt_B, prefix_keys, prefix_values), (of.keys, of.values), block.masks
            )
            grad_mixed = block.heads(grad_mixed_N, layer.head_width).transpose(1, 2)
            grad_queries, of_parts = _attention_backward(grad_mixed, of.queries, parts, of.mixed, of.lse, layer.scale)
            grad_keys, grad_values = of_parts[-1]
            if index:
                grad_prompts = _added(grad_prompts, _for_prompts(of_parts[0], attended[0].keys, prompt_B))
            else:
                grad_keys, grad_values = _added(grad_prompts, (grad_keys, grad_values))
                grad_prefix = of_parts[0] if len(of_parts) == 2 else grad_prefix
            rotation = block.rotation.transposed()
            turned_back = [rotation.turned(grad.transpose(1, 2), back=True) for grad in (grad_queries, grad_keys)]
            flat.insert(0, [block.flat(of_heads) for of_heads in (*turned_back, grad_values.transpose(1, 2))])
        if not ctx.needs_input_grad[0]:
            return None, *grad_prefix, None, None, None
        grad_q_N, grad_k_N, grad_v_N = (_joined(list(of_blocks)) for of_blocks in zip(*flat, strict=True))
        grad_normed_ND = torch.mm(grad_q_N, layer.q).addmm_(grad_k_N, layer.k).addmm_(grad_v_N, layer.v)
        grad_x_ND = layer.norm1.backward(grad_normed_ND, x_ND, length1_N1).add_(grad_h_ND)
        return grad_x_ND, *grad_prefix, None, None, None


def _feed_forward_backward(
    grad_ND: Tensor, layer: Layer[Tensor], h_ND: Tensor, length_N1: Tensor, gate_FN: Tensor, up_FN: Tensor
) -> Tensor:
    """The gradient that reaches h through norm, gate, up and down."""
    grad_FN = layer.down.t() @ grad_ND.t()
    grad_up_FN = gated(gate_FN, grad_FN)
    grad_gate_FN = torch.ops.aten.silu_backward(grad_FN.mul_(up_FN), gate_FN)
    grad_normed_ND = torch.mm(grad_gate_FN.t(), layer.gate).addmm_(grad_up_FN.t(), layer.up)
    return layer.norm2.backward(grad_normed_ND, h_ND, length_N1)


# Attention ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """Keys and values [B or 1, H, S, C], and the mask over them."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None
    causal: bool


_Pair = tuple[Tensor | None, Tensor | None]


def _prefix_of(attended: list[_Attended], prompt_B: Tensor | None, keys: Tensor | None, values: Tensor | None) -> _Pair:
    """The keys and values ahead of a block: those of each row's prompt, which ran before it, or those given from outside."""
    if not attended:
        return keys, values
    prompts = attended[0]
    if prompts.keys.shape[0] == 1 or prompt_B is None:
        return prompts.keys, prompts.values
    return prompts.keys[prompt_B], prompts.values[prompt_B]


def _for_prompts(grads: tuple[Tensor, Tensor], like_KHPC: Tensor, prompt_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rows' gradients of the keys and values ahead of them, summed for each prompt."""
    if like_KHPC.shape[0] == 1 or prompt_B is None:
        return grads
    keys, values = (torch.zeros_like(like_KHPC).index_add_(0, prompt_B, grad) for grad in grads)
    return keys, values


def _parts(prefix: _Pair, own: tuple[Tensor, Tensor], masks: AttentionMasks) -> list[_Part]:
    """The prefix, if there is one, and the text itself."""
    text = _Part(*own, masks.own, masks.own is None)
    keys, values = prefix
    if keys is None or values is None or keys.shape[2] == 0:
        return [text]
    return [_Part(keys, values, masks.prefix, False), text]


def _attention(queries: Tensor, parts: list[_Part], scale: float) -> tuple[Tensor, Tensor]:
    """The output [B, H*G, T, C] and the log-sum-exp [B, H*G, T]."""
    found = [
        attend(queries, *_for_queries(part, queries), is_causal=part.causal, attn_mask=part.mask, scale=scale)
        for part in parts
    ]
    return found[0] if len(found) == 1 else merged(*found)


def _attention_backward(
    grad: Tensor, queries: Tensor, parts: list[_Part], mixed: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Gradients of the queries, and of every part's keys and values in their own shape.

    In float32 at least: the kernel takes three times as long in bfloat16.
    """
    dtype, exact = queries.dtype, lse.dtype
    grad, queries, mixed = grad.to(exact), queries.to(exact), mixed.to(exact)
    grad_queries, of_parts = None, []
    for part in parts:
        keys, values = (heads.to(exact) for heads in _for_queries(part, queries))
        mask = None if part.mask is None else part.mask.to(exact)
        of_queries, of_keys, of_values = attend_backward(
            grad, queries, keys, values, mixed, lse, 0.0, part.causal, attn_mask=mask, scale=scale
        )
        grad_queries = of_queries if grad_queries is None else grad_queries.add_(of_queries)
        of_parts.append((_for_heads(of_keys, part.keys).to(dtype), _for_heads(of_values, part.values).to(dtype)))
    assert grad_queries is not None
    return grad_queries.to(dtype), of_parts


def _for_queries(part: _Part, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [B, H*G, S, C]: each head's repeated for the query heads of its group; rows are not copied."""
    groups = queries.shape[1] // part.keys.shape[1]
    keys, values = (t.repeat_interleave(groups, dim=1) if groups > 1 else t for t in (part.keys, part.values))
    return keys.expand(queries.shape[0], -1, -1, -1), values.expand(queries.shape[0], -1, -1, -1)


def _for_heads(grad_BASC: Tensor, like: Tensor) -> Tensor:
    """The sum over the query heads of each group, and over the rows that share keys."""
    rows, heads, keys, channels = like.shape
    grad = grad_BASC.reshape(grad_BASC.shape[0], heads, -1, keys, channels).sum(2)
    return grad.sum(0, keepdim=True) if rows == 1 else grad


def _added(some: _Pair, others: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    keys, values = (other if one is None else one + other for one, other in zip(some, others, strict=True))
    return keys, values


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
