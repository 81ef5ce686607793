"""Another hold or strength than a file's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sordino.errors import ConfigError
from sordino.prompts.attention import PLAIN, PromptAttention
from sordino.prompts.mixture import Mixture, components_of, with_attention
from sordino.prompts.soft_prompt import Metadata, SoftPrompt

HELD = PromptAttention(hold=64, strength=2.0)


def prompt(attention: PromptAttention = HELD) -> SoftPrompt:
    return SoftPrompt(np.ones((3, 8), np.float32), Metadata(name="Held", attention=attention))


@pytest.mark.parametrize(
    ("hold", "strength", "found"),
    [
        (None, None, HELD),
        (128, None, PromptAttention(128, 2.0)),
        ("off", None, PromptAttention(None, 2.0)),
        (0, 1, PLAIN),
        (None, 0.5, PromptAttention(64, 0.5)),
    ],
)
def test_what_is_not_given_stays(hold: Any, strength: Any, found: PromptAttention) -> None:
    changed = with_attention(prompt(), hold, strength)
    assert changed.metadata.attention == found
    assert changed.content_hash == prompt().content_hash
    assert changed.metadata.name == "Held"


def test_a_mixture_takes_one_for_all_or_one_for_each() -> None:
    mixed = Mixture((prompt(), prompt(PLAIN)), np.ones(2))

    def attentions(hold: Any, strength: Any) -> list[PromptAttention]:
        return [part.metadata.attention for part in components_of(with_attention(mixed, hold, strength)) if part]

    assert attentions(None, None) == [HELD, PLAIN]
    assert attentions("off", 4) == [PromptAttention(None, 4)] * 2
    assert attentions([32, "off"], [1, 0.5]) == [PromptAttention(32), PromptAttention(None, 0.5)]
    with pytest.raises(ConfigError, match="hold: not one value for each component; expected 2, got 3"):
        attentions([1, 2, 3], None)


@pytest.mark.parametrize(
    ("hold", "strength", "words"),
    [
        (-1, None, "hold: out of range"),
        ("on", None, "hold"),
        (True, None, "hold"),
        (None, 5, "strength: out of range"),
        (None, 0, "strength"),
        (None, "2", "strength"),
        (None, True, "strength"),
        (10**30, None, "hold"),
        (None, float("nan"), "strength"),
        ([64], None, "hold: a list is for a mixture's components"),
        (None, [1, 2], "strength: a list"),
    ],
)
def test_what_cannot_be_is_refused_by_name(hold: Any, strength: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        with_attention(prompt(), hold, strength)


def test_without_a_prompt_there_is_nothing_to_hold() -> None:
    assert with_attention(None, None, None) is None
    assert with_attention(None, "off", 1) is None
    with pytest.raises(ConfigError, match="no soft prompt to hold"):
        with_attention(None, 64, None)
    for hold in (None, 0, "off"):
        with pytest.raises(ConfigError, match="strength: there is no soft prompt to strengthen"):
            with_attention(None, hold, 2)  # type: ignore[arg-type]
