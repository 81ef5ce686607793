"""Text as it comes out of tokens is the text of all of them, in whole characters, up to a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.engine.detokenizer import HALF, Detokenizer
from tests.tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def decode(ids) -> str:
    return str(TOKENIZER.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def encode(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def said(context: str, new: str, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    text = Detokenizer(decode, encode(context), stop)
    parts = []
    for token in encode(new):
        parts.append(text.push(token))
        if text.stopped:
            return parts, True
    return [*parts, text.finish()], text.stopped


@given(context=st.text(max_size=12), new=st.text(max_size=40))
def test_the_parts_are_the_whole(context: str, new: str) -> None:
    parts, _ = said(context, new)
    assert "".join(parts) == new.rstrip(HALF)
    assert not any(part.endswith(HALF) for part in parts if HALF not in new)


@given(
    new=st.text(alphabet="abé🎈 ", max_size=25),
    stops=st.lists(st.text(alphabet="abé🎈 ", min_size=1, max_size=4), max_size=3),
)
def test_a_stop_string_is_never_shown(new: str, stops: list[str]) -> None:
    """Nor any part of it, wherever tokens begin and end."""
    parts, stopped = said("", new, tuple(stops))
    # The first stop string to be complete, and where it begins; of those that are complete at once the earliest.
    ends = [(new.find(stop) + len(stop), new.find(stop)) for stop in stops if stop in new]
    shown = "".join(parts)
    assert stopped == bool(ends)
    if not ends:
        assert shown == new
    else:
        assert new.startswith(shown)
        assert not any(stop in shown for stop in stops)
        assert len(shown) <= min(ends)[1]


@pytest.mark.parametrize("broken", ["\xe9", "🎈"])
def test_half_a_character_is_dropped_at_the_end(broken: str) -> None:
    ids = encode("a" + broken)[:-1]
    text = Detokenizer(decode, [])
    assert "".join([*(text.push(token) for token in ids), text.finish()]) == "a"


def test_a_token_costs_no_more_behind_a_long_text() -> None:
    decoded = 0

    def counting(ids) -> str:
        nonlocal decoded
        decoded += len(ids)
        return decode(ids)

    text = Detokenizer(counting, encode("the keeper " * 20))
    for token in encode("the lamp and the sea " * 50):
        text.push(token)
    assert decoded < 8 * len(encode("the lamp and the sea " * 50)) + 40


def test_a_token_is_decoded_once_most_times() -> None:
    calls = 0

    def counting(ids) -> str:
        nonlocal calls
        calls += 1
        return decode(ids)

    new = encode("the lamp and the sea " * 50)
    text = Detokenizer(counting, encode("the keeper"))
    assert "".join([*(text.push(token) for token in new), text.finish()]) == "the lamp and the sea " * 50
    assert calls < 1.25 * len(new) + 5


def test_nothing_is_said_twice_at_the_end() -> None:
    text = Detokenizer(decode, encode("the"))
    said = [text.push(token) for token in encode(" lamp")]
    assert "".join(said) + text.finish() + text.finish() == " lamp"
