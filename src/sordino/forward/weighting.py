"""How much attention text gives to the soft prompt ahead of it, as terms of the attention masks: the only place that computes them.

The t-th token of a text adds log w(t) (`PromptAttention.weight`) to its scores over the prompt's positions. The first position of a
prefix, BOS or a prompt's first virtual token, is the attention sink: scaling it up makes everything worse, so it is left alone.

Shape key: K prefixes, B rows, T text positions, P prefix positions, N tokens, S key positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sordino.prompts.attention import PLAIN, PromptAttention

SINK = 1


@dataclass(frozen=True)
class PromptSpan:
    """The soft prompt in a prefix: its positions from SINK to `stop`, and how much attention text gives them.

    What a prefix holds from `stop` on is text.
    """

    stop: int
    attention: PromptAttention


_NOTHING = PromptSpan(0, PLAIN)
# A span for each prefix; None, or an empty sequence for all of them: no soft prompt, or its attention is plain.
Spans = Sequence[PromptSpan | None]


def span_of(length: int, attention: PromptAttention) -> PromptSpan | None:
    """For a prefix of `length` positions that ends with its soft prompt."""
    return None if attention.plain else PromptSpan(length, attention)


def log_weight(tokens_N: Tensor, attention: PromptAttention, dtype: torch.dtype = torch.float32) -> Tensor:
    """log w(t) [N] of the `tokens_N`-th tokens of a text, computed in float32 at least."""
    return _log_weight(tokens_N, _hold(attention), attention.strength, dtype)


def _log_weight(
    tokens_N: Tensor, hold: float | Tensor, strength: float | Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """hold: infinite where it is off. Tensors are of each token's own prompt."""
    tokens_N = tokens_N.to(torch.promote_types(dtype, torch.float32))
    return ((tokens_N / hold).clamp(min=1.0) * strength).log().to(dtype)


def _hold(attention: PromptAttention) -> float:
    return math.inf if attention.hold is None else attention.hold


def row_bias(
    lengths: Sequence[int], spans: Spans, prompt_B: Tensor, offset_BT: Tensor, dtype: torch.dtype
) -> Tensor | None:
    """What rows of text add to their scores over prefixes padded on the left: [B, T, P]. None: nothing.

    lengths: of the K prefixes. offset_BT: a token's place in its example.
    """
    if not any(spans):
        return None
    width = max(lengths)
    bias_BTP = torch.zeros(*offset_BT.shape, width, dtype=dtype, device=offset_BT.device)
    for k, (length, span) in enumerate(zip(lengths, spans, strict=True)):
        if span is None or span.stop <= SINK:
            continue
        pad, mine = width - length, prompt_B == k
        bias_BT = log_weight(offset_BT[mine] + 1 + length - span.stop, span.attention, dtype)
        bias_BTP[mine, :, pad + SINK : pad + span.stop] = bias_BT[:, :, None]
    return bias_BTP


def position_bias(spans: Spans, position_N: Tensor, width: int, dtype: torch.dtype) -> Tensor | None:
    """What tokens of rows add to their scores over their rows' first `width` positions: [N, width]. None: nothing.

    spans: of each token's row, whose prefix begins at position 0. position_N: where in its row each token is.
    """
    if not any(spans):
        return None
    # No loop over the rows: it would run at every step.
    known = [span or _NOTHING for span in spans]
    exact, device = torch.promote_types(dtype, torch.float32), position_N.device
    stop_N = torch.tensor([span.stop for span in known], device=device)
    hold_N = torch.tensor([_hold(span.attention) for span in known], dtype=exact, device=device)
    strength_N = torch.tensor([span.attention.strength for span in known], dtype=exact, device=device)
    # A prompt's own positions are no text.
    bias_N = _log_weight(position_N + 1 - stop_N, hold_N, strength_N, dtype) * (position_N >= stop_N)
    index_1S = torch.arange(width, device=device)[None]
    return bias_N[:, None] * ((index_1S >= SINK) & (index_1S < stop_N[:, None]))


def prefix_bias(lengths: Sequence[int], spans: Spans, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """What the text inside prefixes, padded on the left, adds to its scores over the prompt: [K, P, P]. None: nothing."""
    if not any(span and span.stop < length for length, span in zip(lengths, spans, strict=bool(spans))):
        return None
    width = max(lengths)
    bias_KPP = torch.zeros(len(lengths), width, width, dtype=dtype, device=device)
    for bias_PP, length, span in zip(bias_KPP, lengths, spans, strict=True):
        if span is not None:
            pad, tokens_N = width - length, torch.arange(1, length - span.stop + 1, device=device)
            weight_N1 = log_weight(tokens_N, span.attention, dtype)[:, None]
            bias_PP[pad + span.stop :, pad + SINK : pad + span.stop] = weight_N1
    return bias_KPP
