"""What of a long text the model gets to see: the newest, within the room, memory and note kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.errors import ConfigError
from sordino.models.base_model import BaseModel
from sordino.server.page import messages
from sordino.server.page.messages import fit_chat, fit_story
from tests.tiny_models import tiny_base


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base("llama", dtype=torch.float32)


WORDS = st.lists(
    st.sampled_from(["the keeper", "wrote", "é", "\n", "lamp 🕯", "  ", "a-very-long-word" * 5]), max_size=80
)


@settings(max_examples=60, deadline=None)
@given(
    words=WORDS,
    memory=st.sampled_from(["", "A lighthouse."]),
    note=st.sampled_from(["", "Sad."]),
    room=st.integers(30, 200),
)
def test_it_fits_and_keeps_the_end(base: BaseModel, words: list[str], memory: str, note: str, room: int) -> None:
    story = " ".join(words)
    fitted = fit_story(base, story, memory=memory, note=note, room=room)
    assert len(fitted.ids) <= room
    assert 0 <= fitted.dropped <= len(story)
    text = base.decode(fitted.ids)
    if memory:
        assert text.startswith(memory)
    if note:
        assert f"[{note}]" in text
    if fitted.dropped == 0 and not memory and not note:
        assert list(fitted.ids) == base.encode(story)


def test_what_fits_is_whole(base: BaseModel) -> None:
    assert fit_story(base, "The keeper wrote.", room=100).dropped == 0


def test_the_note_stands_three_lines_before_the_end(base: BaseModel) -> None:
    fitted = fit_story(base, "a\nb\nc\nd", note="n", room=100)
    assert base.decode(fitted.ids) == "a\n[n]\nb\nc\nd"


def test_memory_that_leaves_no_room_is_refused(base: BaseModel) -> None:
    with pytest.raises(ConfigError, match="no room"):
        fit_story(base, "x", memory="word " * 50, room=10)


def test_a_chat_keeps_the_system_message_and_the_latest_turns(base: BaseModel) -> None:
    if not getattr(base.tokenizer, "chat_template", None):
        base.tokenizer.chat_template = (
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        )
    turns = [{"role": "system", "content": "Be kind."}]
    for number in range(20):
        turns += [
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": f"answer {number}"},
        ]
    turns.append({"role": "user", "content": "the last"})
    fitted = fit_chat(base, turns, room=150)
    text = base.decode(fitted.ids)
    assert len(fitted.ids) <= 150
    assert "Be kind." in text
    assert "the last" in text
    assert "question 0" not in text
    assert fitted.dropped > 0
    with pytest.raises(ConfigError, match="does not fit"):
        fit_chat(base, turns[-1:], room=2)


def test_a_long_chat_is_rendered_a_few_times_and_keeps_all_that_fits(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [{"role": ("user", "assistant")[at % 2], "content": f"number {at}"} for at in range(601)]
    rendered = []

    def ids_of(model: object, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        rendered.append(len(messages))
        return tuple(range(10 * len(messages)))

    monkeypatch.setattr(messages, "chat_ids", ids_of)
    for room in (10, 299, 300, 310, 6009, 6010, 9999):
        rendered.clear()
        fitted = fit_chat(base, turns, room=room)
        # As many of the latest as fit, from a user's turn on: an odd number of them.
        most = min(601, room // 10)
        assert 601 - fitted.dropped == most - (most + 1) % 2
        assert len(fitted.ids) == 10 * (601 - fitted.dropped) <= room
        assert len(rendered) < 15
