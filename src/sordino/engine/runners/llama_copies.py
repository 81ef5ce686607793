"""How often a row in llama.cpp has the cells of its prompt: w copies of a cell get w times its attention (see `llama_state`).

Copies are whole, so w(t) is rounded to the number whose logarithm is nearest. On SmolLM2 that lost least: less than rounding down,
and less than copying only some of the positions once more (LOG.md).
"""

from __future__ import annotations

from sordino.engine.runners.runner import Span
from sordino.forward.weighting import SINK
from sordino.prompts.attention import PromptAttention
from sordino.prompts.prompt import Prompt, attention_of


def copies_for(attention: PromptAttention, tokens: int) -> int:
    """For the `tokens`-th token of a text."""
    weight = attention.weight(tokens)
    below = max(1, int(weight))
    return below if weight * weight < below * (below + 1) else below + 1


def cells_of(prompt: Prompt | None, width: int, length: int) -> int:
    """Cells of a row of `length` positions, `width` of them its prefix."""
    return length + (copies_for(attention_of(prompt), max(1, length - width)) - 1) * max(0, width - SINK)


def by_copies(span: Span, prompt: Prompt | None, first: int) -> list[tuple[int, Span]]:
    """A span in pieces, each with the copies that its tokens need; first: its first token's number."""
    attention = attention_of(prompt)
    needed = [copies_for(attention, first + at) for at in range(len(span.ids))] if not attention.plain else []
    starts = [at for at in range(len(needed)) if at == 0 or needed[at] != needed[at - 1]]
    if len(starts) < 2:
        return [(needed[0] if needed else 1, span)]
    ends = [*starts[1:], len(span.ids)]
    wanted = len(span.ids) - span.wanted
    return [
        (needed[start], Span(span.number, span.ids[start:end], max(0, end - max(start, wanted))))
        for start, end in zip(starts, ends, strict=True)
    ]
