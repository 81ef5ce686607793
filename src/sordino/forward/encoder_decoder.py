"""Rows of an encoder-decoder: a prompt and an input for the encoder, and a text that the decoder writes.

An encoder is bidirectional: the states at a prompt depend on the text after it, so no prompt can run ahead of its rows. What
stands ahead of an input stays vectors (`InputPrefixes`), and every row has its own copy. What is shared: the encoder runs once a
row, whatever the decoder does with its states; prompts of several kinds and lengths share a pass.

A row is prompt, input, padding on the RIGHT: positions count from the prompt's first vector on, in relative and in learned
positions alike, so the prompt has the positions 0 to P - 1 as in google-research/prompt-tuning, and no gap lies after it.

Shape key: K prefixes, B rows, S positions of the encoder, T positions of a row's ids or of the decoder, N labelled tokens, D model
width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sordino.forward.masks import additive
from sordino.forward.prefix import Prefixes
from sordino.forward.rows import Rows

if TYPE_CHECKING:
    from transformers import EncoderDecoderCache, PreTrainedModel


@dataclass(frozen=True, eq=False)
class InputPrefixes:
    """K prefixes as vectors [P_k, D] ahead of an encoder's input, on the model's device."""

    embeds: tuple[Tensor, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(len(embeds_PD) for embeds_PD in self.embeds)

    @property
    def width(self) -> int:
        """The positions of the longest prefix."""
        return max(self.lengths)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.embeds

    def as_leaves(self) -> InputPrefixes:
        """The same values as leaves of their own graph: several passes add their gradients up in `.grad`."""
        return self._each(lambda t: t.detach().to(torch.promote_types(t.dtype, torch.float32)).requires_grad_())

    def to(self, dtype: torch.dtype) -> InputPrefixes:
        """In another dtype; gradients flow back through the change."""
        return self._each(lambda t: t.to(dtype))

    def select(self, indices: Sequence[int]) -> InputPrefixes:
        """These prefixes, in this order."""
        return InputPrefixes(tuple(self.embeds[k] for k in indices))

    def behind(self, texts: Sequence[Tensor]) -> InputPrefixes:
        """Each prefix and the vectors [T, D] of a text after it."""
        pairs = zip(self.embeds, texts, strict=True)
        return InputPrefixes(tuple(torch.cat([own, text_TD.to(own.dtype)]) for own, text_TD in pairs))

    def _each(self, change: Callable[[Tensor], Tensor]) -> InputPrefixes:
        return InputPrefixes(tuple(map(change, self.embeds)))


# What stands ahead of rows: of a decoder's text, or of an encoder's input.
AnyPrefixes = Prefixes | InputPrefixes


@dataclass(frozen=True, eq=False)
class Encoded:
    """What a decoder attends to: states_BSD, and which positions are no padding, seen_BS (int64)."""

    states_BSD: Tensor
    seen_BS: Tensor

    def select(self, rows: Sequence[int]) -> Encoded:
        """These rows, in this order."""
        return Encoded(self.states_BSD[list(rows)], self.seen_BS[list(rows)])


def encode(
    network: PreTrainedModel, prefixes: InputPrefixes, prompts: Sequence[int], inputs: Sequence[Tensor]
) -> Encoded:
    """Run the encoder. prompts[b]: the prefix of row b. inputs[b]: the ids [T] of its own text; prefix and text are not both empty.

    Differentiable towards `prefixes`.
    """
    embedding: Any = network.get_input_embeddings()
    device, dtype = network.device, network.dtype
    lengths = [prefixes.lengths[k] + len(ids) for k, ids in zip(prompts, inputs, strict=True)]
    text_ND = embedding(torch.cat(list(inputs)).to(device))
    # Every vector once; rows gather theirs.
    pool_ND = torch.cat([*(e.to(device=device, dtype=dtype) for e in prefixes.embeds), text_ND])
    first_K = [0]
    for length in prefixes.lengths:
        first_K.append(first_K[-1] + length)
    place_BS = torch.zeros(len(inputs), max(lengths), dtype=torch.long)
    seen_BS = torch.zeros_like(place_BS)
    text_at = first_K[-1]
    for b, (k, ids, length) in enumerate(zip(prompts, inputs, lengths, strict=True)):
        own = prefixes.lengths[k]
        place_BS[b, :own] = torch.arange(first_K[k], first_K[k] + own)
        place_BS[b, own:length] = torch.arange(text_at, text_at + len(ids))
        seen_BS[b, :length] = 1
        text_at += len(ids)
    embeds_BSD = pool_ND.index_select(0, place_BS.flatten().to(device)).unflatten(0, place_BS.shape)
    seen_BS = seen_BS.to(device)
    encoder: Any = network.get_encoder()
    masks = _encoder_masks(encoder.config, seen_BS, dtype)
    return Encoded(encoder(inputs_embeds=embeds_BSD, attention_mask=masks).last_hidden_state, seen_BS)


def _encoder_masks(config: Any, seen_BS: Tensor, dtype: torch.dtype) -> Any:
    """What the encoder takes as its mask. With sliding windows, padding beyond the window would see nothing and become NaN."""
    if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return seen_BS
    index_S = torch.arange(seen_BS.shape[1], device=seen_BS.device)
    distance_SS = (index_S[:, None] - index_S[None, :]).abs()
    seen_BSS = seen_BS.bool()[:, None, :]
    near_SS, self_SS = distance_SS <= config.sliding_window, distance_SS == 0
    return {
        "full_attention": additive(seen_BSS | self_SS, dtype),
        "sliding_attention": additive(seen_BSS & near_SS | self_SS, dtype),
    }


def decode(
    network: PreTrainedModel, encoded: Encoded, ids_BT: Tensor, cache: EncoderDecoderCache | None = None
) -> Tensor:
    """Hidden states (after the final norm) [B, T, D] of the decoder's next ids. cache: of what came before; it is extended.

    Every token sees all before it: padding is on the right.
    """
    decoder: Any = network.get_decoder()
    before = 0 if cache is None else cache.get_seq_length()
    # Without a mask, some families take padding ids of the text itself for padding.
    mask_BS = torch.ones(len(ids_BT), before + ids_BT.shape[1], dtype=torch.long, device=ids_BT.device)
    hidden_BTD: Tensor = decoder(
        input_ids=ids_BT,
        attention_mask=mask_BS,
        encoder_hidden_states=encoded.states_BSD,
        encoder_attention_mask=encoded.seen_BS,
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state
    return hidden_BTD


def states_before_targets(network: PreTrainedModel, prefixes: InputPrefixes, rows: Rows, labelled_BT: Tensor) -> Tensor:
    """The hidden states [N, D] that predict the labelled tokens, in row order. Differentiable towards `prefixes`.

    rows: one example a row, their `input_B` given; on any device.
    """
    if rows.input_B is None or bool((rows.example_BT > 0).any()):
        raise ValueError("rows of an encoder-decoder are one example each, with its input")
    # What is arranged row by row is so on the CPU: a GPU would be waited for at each.
    ids_BT, ends = rows.ids_BT.cpu(), (rows.example_BT >= 0).sum(1).tolist()
    begins = rows.input_B.tolist()
    inputs = [ids_T[:begin] for ids_T, begin in zip(ids_BT, begins, strict=True)]
    encoded = encode(network, prefixes, rows.prompt_B.tolist(), inputs)
    # The last token predicts nothing.
    written_BT = torch.zeros(
        len(begins), max(1, *(e - b - 1 for b, e in zip(begins, ends, strict=True))), dtype=torch.long
    )
    for b, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        written_BT[b, : end - begin - 1] = ids_BT[b, begin : end - 1]
    hidden_BTD = decode(network, encoded, written_BT.to(network.device))
    row_N, place_N = labelled_BT.cpu().nonzero(as_tuple=True)
    before_N = place_N - rows.input_B.cpu()[row_N] - 1
    if bool((before_N < 0).any()):
        raise ValueError("a token of the input, or the decoder's first, is labelled")
    index_N = (row_N * hidden_BTD.shape[1] + before_N).to(network.device)
    return hidden_BTD.flatten(0, 1).index_select(0, index_N)
