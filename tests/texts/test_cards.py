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
from sordino.texts.cards import card_of, lore_of

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
    assert card["name"] == "Ada"
    assert card["description"] == "Ada keeps the light."
    assert card["first_message"] == "Good evening, You."
    assert card["scenario"] == ""


def test_the_third_version_is_preferred() -> None:
    content = picture(chunk(b"tEXt", b"chara\0" + packed(V2)), chunk(b"tEXt", b"ccv3\0" + packed(V3)))
    assert card_of(content)["name"] == "Ada the third"


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


def test_half_a_character_in_a_card_is_none() -> None:
    card = card_of(b'{"name": "A\\ud800da", "first_mes": "\\udfff"}')
    assert (card["name"], card["first_message"]) == ("A?da", "?")
    json.dumps(card, ensure_ascii=False).encode()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_card_or_refused(tail: bytes) -> None:
    for content in (tail, picture()[:33] + tail):
        with suppress(BadInput):
            assert card_of(content)["name"]


def test_the_text_in_front_of_a_chat_has_what_the_card_says() -> None:
    card = card_of(json.dumps({**V1, "personality": "calm", "scenario": "a pier"}).encode())
    assert card["text"] == "You are Ada.\n\nAda keeps the light.\n\nPersonality: calm\n\nScenario: a pier"


def test_a_lorebook_is_its_entries_that_are_switched_on() -> None:
    entries = [{"content": "{{char}} fears gulls."}, {"content": "no", "enabled": False}, {"content": 3}, None]
    assert lore_of({"entries": entries}, "Ada") == "Ada fears gulls."
    assert lore_of({"entries": {"0": {"content": "one"}, "1": {"content": "off", "disable": True}}}) == "one"
    assert [lore_of(book) for book in (None, [], {"entries": 1})] == ["", "", ""]
    assert card_of(json.dumps({**V1, "character_book": {"entries": entries}}).encode())["lore"] == "Ada fears gulls."
