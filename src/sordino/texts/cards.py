"""Character cards: SillyTavern's PNG or JSON files, versions 1, 2 and 3 of their specification; and lorebooks.

A PNG holds the card as base64 of JSON in a text chunk: `ccv3` where there is one, else `chara`. Pixels are not decoded.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any

from sordino.errors import BadInput, MissingExtra

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXPECTED = "a character card: a PNG or a JSON file of SillyTavern's kind"
# The user's name is not asked for.
USER = "You"
# Our fields, by those of the specification.
_FIELDS = {
    "description": "description",
    "personality": "personality",
    "scenario": "scenario",
    "first_mes": "first_message",
    "mes_example": "examples",
    "system_prompt": "system",
    "post_history_instructions": "after",
}


def card_of(content: bytes) -> dict[str, str]:
    """{name, description, personality, scenario, first_message, examples, system, after, lore} of the card in a file, and the
    text that a chat with it begins with. Raises BadInput.
    """
    document = document_of(content)
    # Versions 2 and 3 put the fields of version 1 into `data`.
    card = document.get("data", document) if isinstance(document, dict) else None
    if not isinstance(card, dict) or not isinstance(card.get("name"), str) or not card["name"].strip():
        raise BadInput("the file holds no character", expected=_EXPECTED)
    name = card["name"].strip()
    fields = {ours: _filled(card.get(theirs), name) for theirs, ours in _FIELDS.items()}
    known = {"name": _encodable(name), **fields, "lore": lore_of(card.get("character_book"), name)}
    return {**known, "text": _text_of(known)}


def document_of(content: bytes) -> Any:
    """The JSON of a card or a lorebook, or in a card's picture. Raises BadInput."""
    text = _text_in_png(content) if content.startswith(SIGNATURE) else content
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput("not a character card", expected=_EXPECTED) from None


def lore_of(book: object, name: str = "") -> str:
    """The entries of a lorebook that are switched on, a paragraph each; "" where it has none, or is no lorebook."""
    entries = book.get("entries") if isinstance(book, dict) else None
    listed = list(entries.values()) if isinstance(entries, dict) else entries if isinstance(entries, list) else []
    on = [one for one in listed if isinstance(one, dict) and one.get("enabled", True) and not one.get("disable")]
    return "\n\n".join(filter(None, (_filled(one.get("content"), name) for one in on)))


def _text_of(card: Mapping[str, str]) -> str:
    """What stands in front of a chat with the character, but for its lorebook."""
    name = card["name"]
    parts = (
        f"You are {name}.",
        card["system"],
        card["description"],
        card["personality"] and f"Personality: {card['personality']}",
        card["scenario"] and f"Scenario: {card['scenario']}",
        card["examples"] and f"Examples of how {name} talks:\n{card['examples']}",
        card["after"],
    )
    return "\n\n".join(filter(None, parts))


def _filled(value: object, name: str) -> str:
    """A field's text, with its placeholders for the two speakers filled in."""
    text = value if isinstance(value, str) else ""
    for placeholder, speaker in {"{{char}}": name, "<BOT>": name, "{{user}}": USER, "<USER>": USER}.items():
        text = text.replace(placeholder, speaker)
    return _encodable(text.strip())


def _encodable(text: str) -> str:
    """JSON may hold a lone surrogate, which has no encoding."""
    return text.encode("utf-8", "replace").decode()


def _text_in_png(content: bytes) -> bytes:
    try:
        from PIL.PngImagePlugin import PngStream
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "reading a card's picture needs another package", got=error.name, do="pip install 'sordino[serve]'"
        ) from None
    # Text chunks may follow the pixels, where `PIL.Image` reads them only after it has decoded these. Chunks before a damaged one
    # count.
    with PngStream(BytesIO(content[len(SIGNATURE) :])) as png:
        with suppress(OSError, SyntaxError, ValueError, struct.error):
            while png.fp is not None:
                kind, position, length = png.read()
                if kind in (b"tEXt", b"zTXt", b"iTXt"):
                    png.call(kind, position, length)
                png.fp.seek(position + length + 4)
        texts = {keyword.lower(): text for keyword, text in reversed(png.im_text.items())}
    text = texts.get("ccv3") or texts.get("chara")
    if not text:
        raise BadInput("the picture holds no character card", expected=_EXPECTED)
    try:
        return base64.b64decode(text, validate=False)
    except ValueError:
        raise BadInput("the card in the picture is damaged", expected=_EXPECTED) from None
