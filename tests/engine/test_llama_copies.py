"""How many copies a row needs, and where a span is cut for them: no model."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sordino.engine.runners.llama_copies import by_copies, cells_of, copies_for
from sordino.engine.runners.runner import Span
from sordino.prompts.attention import PLAIN, PromptAttention
from sordino.prompts.soft_prompt import Metadata, SoftPrompt

HELD = PromptAttention(hold=8)
PROMPT = SoftPrompt(np.ones((5, 8), np.float32), Metadata(attention=HELD))


@pytest.mark.parametrize("tokens", range(1, 200))
def test_copies_are_the_whole_number_whose_logarithm_is_nearest(tokens: int) -> None:
    wanted = math.log(HELD.weight(tokens))
    best = min(range(1, 40), key=lambda copies: abs(math.log(copies) - wanted))
    assert copies_for(HELD, tokens) == best
    assert copies_for(PLAIN, tokens) == 1
    assert cells_of(PROMPT, 5, 5 + tokens) == 5 + tokens + 4 * (best - 1)
    assert cells_of(None, 5, 5 + tokens) == 5 + tokens


@pytest.mark.parametrize("first", [1, 7, 30])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_a_span_is_cut_where_the_copies_change(first: int, count: int) -> None:
    span = Span(3, tuple(range(count)), True)
    pieces = by_copies(span, PROMPT, first)
    assert [word for _, piece in pieces for word in piece.ids] == list(span.ids)
    assert [piece.wanted for _, piece in pieces] == [False] * (len(pieces) - 1) + [True]
    at = first
    for copies, piece in pieces:
        assert {copies_for(HELD, at + place) for place in range(len(piece.ids))} <= {copies}
        at += len(piece.ids)
    assert len({copies for copies, _ in pieces}) == len(pieces)
    assert by_copies(span, None, first) == [(1, span)]
