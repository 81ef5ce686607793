"""What a row's tokens cost at each step, however long its text is."""

from __future__ import annotations

import pytest

from sordino.engine.seen_tokens import SeenTokens
from tests.engine.counting import CountedList, steps_of


def cost_of_a_token(length: int, window: int) -> int:
    """Of a new token after a text of so many, of 40 different ones."""
    seen = SeenTokens([at % 40 for at in range(length)], window)
    seen.last_places()
    seen.ids = CountedList(seen.ids)

    def step() -> None:
        seen.push(7)
        seen.last_places()

    return steps_of(step)


@pytest.mark.parametrize("window", [0, 64])
def test_a_step_costs_the_same_however_long_the_text_is(window: int) -> None:
    assert cost_of_a_token(10_000, window) == cost_of_a_token(200, window) < 60
