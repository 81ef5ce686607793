"""Character cards: JSON and PNG, three versions, and files that only look like one."""

from __future__ import annotations

import base64
import json
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.errors import BadInput
from sordino.texts.cards import LoreEntry, card_of, filled, lore_of

V1 = {"name": "Ada", "description": "{{char}} keeps the light.", "first_mes": "Good evening, {{user}}."}
V2 = {"spec": "chara_card_v2", "data": V1}
V3 = {"spec": "chara_card_v3", "data": {**V1, "name": "Ada the third"}}


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def picture(*chunks: bytes) -> bytes:
    header = chunk(b"IHDR", (1).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def packed(card: object) -> bytes:
    return base64.b64encode(json.dumps(card).encode())


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(V1).encode(),
        json.dumps(V2).encode(),
        picture(chunk(b"tEXt", b"chara\0" + packed(V2))),
        picture(chunk(b"zTXt", b"chara\0\0" + zlib.compress(packed(V2)))),
        picture(chunk(b"iTXt", b"chara\0\1\0\0\0" + zlib.compress(packed(V2)))),
        picture(chunk(b"iTXt", b"chara\0\0\0en\0\0" + packed(V2))),
    ],
)
def test_it_is_read(content: bytes) -> None:
    card = card_of(content)
    assert (card.name, card.scenario) == ("Ada", "")
    assert filled(card.description, card.name) == "Ada keeps the light."
    assert [filled(greeting, "Ada", "Bea") for greeting in card.greetings] == ["Good evening, Bea."]


def test_the_third_version_is_preferred() -> None:
    content = picture(chunk(b"tEXt", b"chara\0" + packed(V2)), chunk(b"tEXt", b"ccv3\0" + packed(V3)))
    assert card_of(content).name == "Ada the third"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"name": ""}', b'{"name": 3}', picture(), picture(chunk(b"tEXt", b"chara\0!!!"))],
)
def test_what_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(BadInput):
        card_of(content)


def test_a_bomb_is_not_unpacked() -> None:
    bomb = zlib.compress(b"A" * (64 << 20), 9)
    with pytest.raises(BadInput):
        card_of(picture(chunk(b"zTXt", b"chara\0\0" + bomb)))


def test_a_name_that_looks_like_a_placeholder_is_not_filled_in_again() -> None:
    assert filled("{{char}} and {{user}}", "<BOT><BOT>") == "<BOT><BOT> and You"


def test_half_a_character_in_a_card_is_none() -> None:
    card = card_of(b'{"name": "A\\ud800da", "first_mes": "\\udfff"}')
    assert (card.name, card.greetings) == ("A?da", ("?",))
    card.text.encode()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_card_or_refused(tail: bytes) -> None:
    for content in (tail, picture()[:33] + tail):
        with suppress(BadInput):
            assert card_of(content).name


def test_the_text_in_front_of_a_chat_has_what_the_card_says() -> None:
    card = card_of(json.dumps({**V1, "personality": "calm", "scenario": "a pier"}).encode())
    assert (
        filled(card.text, card.name) == "You are Ada.\n\nAda keeps the light.\n\nPersonality: calm\n\nScenario: a pier"
    )


def test_examples_are_apart_and_without_their_mark() -> None:
    examples = "<START>\n{{user}}: Who are you?\n{{char}}: I keep the light.\n<start>\n<BOT>: Mind the step."
    text = filled(card_of(json.dumps({**V1, "mes_example": examples}).encode()).text, "Ada", "Bea")
    assert text.endswith(
        "Examples of how Ada talks:\nBea: Who are you?\nAda: I keep the light.\n***\nAda: Mind the step."
    )


def test_all_greetings_are_there_to_choose_from() -> None:
    card = card_of(json.dumps({"data": {**V1, "alternate_greetings": ["Who goes there?", "", 3]}}).encode())
    assert card.greetings == ("Good evening, {{user}}.", "Who goes there?")


def test_a_small_card_stays_small() -> None:
    """A long name in place of each of many placeholders."""
    with pytest.raises(BadInput, match="name is too long"):
        card_of(json.dumps({**V1, "name": "N" * 1000}).encode())
    card = card_of(json.dumps({**V1, "name": "N" * 300, "description": "{{char}}" * 10_000}).encode())
    with pytest.raises(BadInput, match="too long with its placeholders filled in"):
        filled(card.text, card.name)


def test_a_lorebook_is_its_entries_that_are_switched_on() -> None:
    entries = [{"content": "{{char}} fears gulls."}, {"content": "no", "enabled": False}, {"content": 3}, None]
    assert lore_of({"entries": entries}).text == "{{char}} fears gulls."
    assert lore_of({"entries": {"0": {"content": "one"}, "1": {"content": "off", "disable": True}}}).text == "one"
    assert [lore_of(book).entries for book in (None, [], {"entries": 1})] == [(), (), ()]
    card = card_of(json.dumps({**V1, "character_book": {"entries": entries}}).encode())
    assert card.lore.text == "{{char}} fears gulls."


def test_an_entry_of_a_lorebook_has_the_words_that_call_for_it() -> None:
    of_a_card = {
        "content": "Gulls bite.", "keys": ["gull", " "], "secondary_keys": ["bread"], "selective": True,
        "case_sensitive": True, "insertion_order": 7,
    }  # fmt: skip
    of_a_file = {"content": "Always.", "key": [], "keysecondary": ["x"], "constant": True, "order": 1}
    patterns = [{"content": "a", "keys": ["/gu+ll/i"]}, {"content": "b", "keys": ["gu+ll"], "use_regex": True}]
    book = lore_of({"entries": [of_a_card, of_a_file, *patterns]})
    assert book.entries[0] == LoreEntry("Gulls bite.", ("gull",), ("bread",), case_sensitive=True, order=7)
    assert book.entries[1] == LoreEntry("Always.", constant=True, order=1)
    assert ([entry.keys for entry in book.entries[2:]], book.patterns) == ([(), ()], 2)
