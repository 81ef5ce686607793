"""The one idea: a row is text plus the index of its soft prompt.

K soft prompts run through the base model once and give K prefixes; each row gathers its prefix by index. A decoder is causal,
so the keys and values at the prompt's positions do not depend on the text after them: running them once and sharing them is
exact, and their gradients sum. Training, evaluation, mixtures and serving are this one operation.

A prefix is, for every layer, the keys and values at its positions, and the last hidden state, from which the first text token
is predicted. What a prefix holds besides the virtual tokens (a BOS) is decided by `placement`.

Shape key: K prefixes, B rows, T text positions, P prefix positions (the longest of the K), D model width, H key-value heads,
C channels of a head, L layers, N labelled tokens.

Traps, each with a test in tests/parity:
- Prefixes of different lengths are padded on the LEFT and carry explicit position ids. Padded on the right, there would be a gap
  between prompt and text, which counts for sliding windows.
- `DynamicCache()` without a config, made anew for every forward pass: `update` mutates it, and a cache made from the config
  crops keys at the sliding window.
- Gradient checkpointing inside transformers returns no cache: the cache's length is checked after every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from sordino.errors import ConfigError
from sordino.forward import llama
from sordino.forward.llama import Block
from sordino.forward.llama_layers import runs
from sordino.forward.masks import AttentionMasks, fused_masks, prompt_masks, row_masks
from sordino.forward.rows import Rows
from sordino.forward.weighting import Spans, prefix_bias

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Families whose packed rows are proven equal to plain concatenation in tests/parity. Any other family runs one example a
# row with transformers' own masks.
PACKABLE_FAMILIES = frozenset({"llama", "gpt2", "gpt_neox", "gptj", "qwen3", "gemma3_text"})


@dataclass(frozen=True)
class Prefixes:
    """K prefixes of one base model, left-padded to the longest.

    keys_KHPC, values_KHPC: a tensor a layer, in the model's dtype. last_KD: the hidden state (after the final norm) at each
    prefix's last position; zeros where a prefix is empty. lengths: positions each prefix really has. spans: where each holds a soft
    prompt that text gives more or less attention than usual; empty where none does.
    """

    keys_KHPC: tuple[Tensor, ...]
    values_KHPC: tuple[Tensor, ...]
    last_KD: Tensor
    lengths: tuple[int, ...]
    spans: Spans = ()

    @property
    def width(self) -> int:
        """P, the positions of the longest prefix."""
        return max(self.lengths)

    def planes(self) -> list[Tensor]:
        """Keys and values [K, H, P, C], layer by layer."""
        return [plane for layer in zip(self.keys_KHPC, self.values_KHPC, strict=True) for plane in layer]

    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.keys_KHPC, *self.values_KHPC, self.last_KD)

    def as_leaves(self) -> Prefixes:
        """The same values as leaves of their own graph: several passes add their gradients up in `.grad`.

        In float32 at least: a sum of many small gradients in bfloat16 would lose most of them. `to` converts for the model.
        """
        return self._each(lambda t: t.detach().to(torch.promote_types(t.dtype, torch.float32)).requires_grad_())

    def to(self, dtype: torch.dtype) -> Prefixes:
        """In another dtype; gradients flow back through the change."""
        return self._each(lambda t: t.to(dtype))

    def select(self, indices: Sequence[int]) -> Prefixes:
        """These prefixes, in this order."""
        lengths = tuple(self.lengths[k] for k in indices)
        cut = self.width - max(lengths)
        chosen = self._each(lambda t: t[list(indices)])
        keys, values = (tuple(t[:, :, cut:] for t in side) for side in (chosen.keys_KHPC, chosen.values_KHPC))
        spans = tuple(self.spans[k] for k in indices) if self.spans else ()
        return Prefixes(keys, values, chosen.last_KD, lengths, spans)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Prefixes:
        keys, values = (tuple(map(change, side)) for side in (self.keys_KHPC, self.values_KHPC))
        return replace(self, keys_KHPC=keys, values_KHPC=values, last_KD=change(self.last_KD))


def back_propagate(tensors: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
    """Back-propagate the gradients at leaves (`as_leaves`) to what the prefixes' own tensors were computed from."""
    both = zip(tensors, leaves, strict=True)
    pairs = [(own, leaf.grad.to(own.dtype)) for own, leaf in both if leaf.grad is not None and own.requires_grad]
    torch.autograd.backward([own for own, _ in pairs], [grad for _, grad in pairs])


def encode_prefixes(network: PreTrainedModel, embeds: Sequence[Tensor], spans: Spans = ()) -> Prefixes:
    """Run K prompts through the model once.

    embeds: K tensors [P_k, D] as the network's `inputs_embeds` (P_k may be 0: an empty prefix). They are cast to the network's
    dtype; gradients flow back to them. spans: where each holds its soft prompt, if text gives it more or less attention.
    Raises ConfigError where `spans` are beyond this family.
    """
    lengths = tuple(int(e.shape[0]) for e in embeds)
    check_spans(network, spans)
    if max(lengths) == 0:
        return _empty_prefixes(network, len(embeds))
    embeds_KPD, positions_KP, padded_KP = side_by_side(network, embeds)
    bias_KPP = prefix_bias(lengths, spans, network.dtype, network.device)
    if has_fused_layers(network):
        block = _prompt_block(network, embeds_KPD, positions_KP, padded_KP, bias_KPP)
        hidden_KPD, layers = llama.decode(network, block)
    else:
        masks = _prompt_masks(network, positions_KP, padded_KP, bias_KPP)
        cache = DynamicCache()
        hidden_KPD = run_network(network, embeds_KPD, positions_KP, masks, cache)
        layers = layers_of(cache)
    return _prefixes(layers, hidden_KPD, lengths, spans)


def join_prefixes(parts: Sequence[Prefixes]) -> Prefixes:
    """The prefixes of all parts, in order, left-padded to the longest."""
    lengths = tuple(length for part in parts for length in part.lengths)
    like = next((part for part in parts if part.keys_KHPC), parts[0])

    def joined(sides: Sequence[tuple[Tensor, ...]], layer: int) -> Tensor:
        padded = []
        for part, side in zip(parts, sides, strict=True):
            # An empty prefix has no layers.
            nothing = like.keys_KHPC[layer][:1, :, :0].expand(len(part.lengths), -1, -1, -1)
            tensor_KHPC = side[layer] if side else nothing
            padded.append(torch.nn.functional.pad(tensor_KHPC, (0, 0, max(lengths) - tensor_KHPC.shape[2], 0)))
        return torch.cat(padded)

    layers = range(len(like.keys_KHPC))
    keys = tuple(joined([part.keys_KHPC for part in parts], layer) for layer in layers)
    values = tuple(joined([part.values_KHPC for part in parts], layer) for layer in layers)
    spans = tuple(span for part in parts for span in part.spans or (None,) * len(part.lengths))
    return Prefixes(keys, values, torch.cat([part.last_KD for part in parts]), lengths, spans if any(spans) else ())


def forward_rows(network: PreTrainedModel, prefixes: Prefixes, rows: Rows) -> Tensor:
    """Hidden states (after the final norm) [B, T, D] of the rows' tokens, each row with its prefix. Padded positions are noise."""
    if rows.ids_BT.shape[1] == 0 or not has_fused_layers(network):
        return forward_rows_cached(network, prefixes, rows)[0]

    def of_rows(tensor_KHPC: Tensor) -> Tensor:
        # One prefix of all rows stays [1, H, P, C].
        return tensor_KHPC if tensor_KHPC.shape[0] == 1 else tensor_KHPC[rows.prompt_B]

    prefix = [(of_rows(k), of_rows(v)) for k, v in zip(prefixes.keys_KHPC, prefixes.values_KHPC, strict=True)]
    return llama.decode(network, text_block(network, prefixes.lengths, prefixes.spans, rows), prefix)[0]


def encode_and_forward(
    network: PreTrainedModel, embeds: Sequence[Tensor], rows: Rows, spans: Spans = ()
) -> tuple[Prefixes, Tensor]:
    """`encode_prefixes` and `forward_rows` of one set of rows: the same numbers, in one run through the model where possible."""
    lengths = tuple(int(e.shape[0]) for e in embeds)
    if not has_fused_layers(network) or max(lengths) == 0 or rows.ids_BT.shape[1] == 0:
        prefixes = encode_prefixes(network, embeds, spans)
        return prefixes, forward_rows(network, prefixes, rows)
    bias_KPP = prefix_bias(lengths, spans, network.dtype, network.device)
    prompts = _prompt_block(network, *side_by_side(network, embeds), bias_KPP)
    text = text_block(network, lengths, spans, rows)
    hidden_KPD, hidden_BTD, layers = llama.decode_together(network, prompts, text, rows.prompt_B)
    return _prefixes(layers, hidden_KPD, lengths, spans), hidden_BTD


def forward_rows_cached(network: PreTrainedModel, prefixes: Prefixes, rows: Rows) -> tuple[Tensor, DynamicCache]:
    """As `forward_rows`, and the cache afterwards: prefix, then text."""
    cache = _gathered_cache(prefixes, rows.prompt_B)
    if rows.ids_BT.shape[1] == 0:
        # Models cannot run zero tokens: they infer shapes from them.
        return prefixes.last_KD.new_empty(*rows.ids_BT.shape, prefixes.last_KD.shape[1]), cache
    positions_BT = positions_of(prefixes.lengths, rows)
    embeds_BTD = network.get_input_embeddings()(rows.ids_BT)
    masks = _row_masks(network, prefixes, rows, positions_BT)
    return run_network(network, embeds_BTD, positions_BT, masks, cache), cache


def packable(network: PreTrainedModel) -> bool:
    """Whether several examples may share a row on this architecture (it is in the parity tests)."""
    return network.config.model_type in PACKABLE_FAMILIES


def check_spans(network: PreTrainedModel, spans: Spans) -> None:
    """Raise ConfigError where text cannot give a soft prompt more or less attention: our masks are not proven on this family."""
    if any(spans) and not packable(network):
        raise ConfigError(
            "hold and strength do not work on this architecture yet",
            where=network.config.model_type,
            expected=", ".join(sorted(PACKABLE_FAMILIES)),
            do="run the soft prompt with hold off and strength 1",
        )


def has_fused_layers(network: PreTrainedModel) -> bool:
    """Whether `forward.llama` runs this network: the same numbers, faster."""
    return packable(network) and not network.training and runs(network)


def run_network(network: PreTrainedModel, embeds: Tensor, positions: Tensor, masks: Any, cache: DynamicCache) -> Tensor:
    # By the layers' own flag: transformers renamed the network's after 5.19.
    if network.training and any(getattr(part, "gradient_checkpointing", False) for part in network.modules()):
        raise RuntimeError("gradient checkpointing drops the cache, so prefixes cannot be used with it")
    before = cache.get_seq_length()
    hidden: Tensor = network.base_model(
        inputs_embeds=embeds, position_ids=positions, attention_mask=masks, past_key_values=cache, use_cache=True
    ).last_hidden_state
    if cache.get_seq_length() != before + embeds.shape[1]:
        raise RuntimeError(f"{network.config.model_type}: the model did not use the cache it was given")
    return hidden


def side_by_side(network: PreTrainedModel, embeds: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts padded on the left: inputs_embeds [K, P, D], position ids [K, P], and which positions are padding [K, P]."""
    device, dtype = network.device, network.dtype
    width = max(int(e.shape[0]) for e in embeds)
    pads = [width - int(e.shape[0]) for e in embeds]
    rows = [e.to(device=device, dtype=dtype) for e in embeds]
    embeds_KPD = torch.stack([torch.nn.functional.pad(e, (0, 0, pad, 0)) for e, pad in zip(rows, pads, strict=True)])
    pad_K1 = torch.tensor(pads, device=device)[:, None]
    index_1P = torch.arange(width, device=device)[None, :]
    return embeds_KPD, (index_1P - pad_K1).clamp(min=0), index_1P < pad_K1


def _prefixes(
    layers: Sequence[tuple[Tensor, Tensor]], hidden_KPD: Tensor, lengths: tuple[int, ...], spans: Spans
) -> Prefixes:
    filled_K = torch.tensor([length > 0 for length in lengths], device=hidden_KPD.device)
    keys, values = zip(*layers, strict=True)
    return Prefixes(keys, values, hidden_KPD[:, -1] * filled_K[:, None], lengths, spans)


def _prompt_block(
    network: PreTrainedModel, embeds_KPD: Tensor, positions_KP: Tensor, padded_KP: Tensor, bias_KPP: Tensor | None
) -> Block:
    masked = bias_KPP is not None or bool(padded_KP.any())
    own = _prompt_masks(network, positions_KP, padded_KP, bias_KPP) if masked else None
    return Block(embeds_KPD, positions_KP, AttentionMasks(own=own))


def text_block(network: PreTrainedModel, lengths: Sequence[int], spans: Spans, rows: Rows) -> Block:
    embeds_BTD = network.get_input_embeddings()(rows.ids_BT)
    return Block(embeds_BTD, positions_of(lengths, rows), fused_masks(lengths, spans, rows, network.dtype))


def positions_of(lengths: Sequence[int], rows: Rows) -> Tensor:
    """Position ids [B, T]: a token's place in its example, after its row's prefix."""
    lengths_K = torch.tensor(lengths, device=rows.offset_BT.device)
    return rows.offset_BT + lengths_K[rows.prompt_B][:, None]


def in_each_row(tensor_KHPC: Tensor, prompt_B: Tensor) -> Tensor:
    """Each row's prefix [B, H, P, C]; one prefix is not copied."""
    return tensor_KHPC.expand(len(prompt_B), -1, -1, -1) if tensor_KHPC.shape[0] == 1 else tensor_KHPC[prompt_B]


def _gathered_cache(prefixes: Prefixes, prompt_B: Tensor) -> DynamicCache:
    """A new cache that holds each row's prefix."""
    cache = DynamicCache()
    if prefixes.width == 0:
        return cache
    for layer, (keys, values) in enumerate(zip(prefixes.keys_KHPC, prefixes.values_KHPC, strict=True)):
        cache.update(in_each_row(keys, prompt_B), in_each_row(values, prompt_B), layer)
    return cache


def layers_of(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    # transformers' union of layer kinds has members without keys; a plain DynamicCache holds none of them.
    layers: list[Any] = list(cache.layers)
    return [(layer.keys, layer.values) for layer in layers]


def _empty_prefixes(network: PreTrainedModel, count: int) -> Prefixes:
    embedding: Any = network.get_input_embeddings()
    last_KD = torch.zeros(count, embedding.weight.shape[1], device=network.device, dtype=network.dtype)
    return Prefixes((), (), last_KD, (0,) * count)


def _prompt_masks(network: PreTrainedModel, positions_KP: Tensor, padded_KP: Tensor, bias_KPP: Tensor | None) -> Any:
    return prompt_masks(network, positions_KP, padded_KP, bias_KPP) if packable(network) else (~padded_KP).long()


def _row_masks(network: PreTrainedModel, prefixes: Prefixes, rows: Rows, positions_BT: Tensor) -> Any:
    if packable(network):
        return row_masks(network, prefixes.lengths, prefixes.spans, rows, positions_BT)
    if int(rows.example_BT.max()) > 0:
        raise ValueError(f"{network.config.model_type} is not in the parity tests: one example a row")
    pad_B = (prefixes.width - torch.tensor(prefixes.lengths, device=positions_BT.device))[rows.prompt_B]
    index_P = torch.arange(prefixes.width, device=positions_BT.device)
    return torch.cat([index_P[None, :] >= pad_B[:, None], rows.example_BT >= 0], dim=1).long()
