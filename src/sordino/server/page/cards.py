"""Character cards: SillyTavern's PNG or JSON files, versions 1, 2 and 3 of their specification.

A PNG holds the card as base64 of JSON in a text chunk: `ccv3` where there is one, else `chara`. Pixels are not decoded.
"""

from __future__ import annotations

import base64
import json
import struct
from contextlib import suppress
from io import BytesIO
from typing import Annotated

from fastapi import APIRouter, File
from PIL.PngImagePlugin import PngStream

from sordino.errors import BadInput
from sordino.server.errors import refusing

router = APIRouter(prefix="/ui/cards", include_in_schema=False)

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXPECTED = "a character card: a PNG or a JSON file of SillyTavern's kind"
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


@router.post("")
def read(file: Annotated[bytes, File()]) -> dict[str, str]:
    """{name, description, personality, scenario, first_message, examples, system, after}: what a chat needs of a card."""
    with refusing("file"):
        return card_of(file)


def card_of(content: bytes) -> dict[str, str]:
    """The card in a file. Raises BadInput."""
    text = _text_in_png(content) if content.startswith(_SIGNATURE) else content
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput("not a character card", expected=_EXPECTED) from None
    # Versions 2 and 3 put the fields of version 1 into `data`.
    card = document.get("data", document) if isinstance(document, dict) else None
    if not isinstance(card, dict) or not isinstance(card.get("name"), str) or not card["name"].strip():
        raise BadInput("the file holds no character", expected=_EXPECTED)
    name = card["name"].strip()
    # Placeholders for the two speakers. The page does not ask for the user's name.
    placeholders = {"{{char}}": name, "<BOT>": name, "{{user}}": "You", "<USER>": "You"}

    def field(key: str) -> str:
        value = card.get(key)
        text = value if isinstance(value, str) else ""
        for placeholder, speaker in placeholders.items():
            text = text.replace(placeholder, speaker)
        return _encodable(text.strip())

    return {"name": _encodable(name), **{ours: field(theirs) for theirs, ours in _FIELDS.items()}}


def _encodable(text: str) -> str:
    """JSON may hold a lone surrogate, which has no encoding."""
    return text.encode("utf-8", "replace").decode()


def _text_in_png(content: bytes) -> bytes:
    # Text chunks may follow the pixels, where `PIL.Image` reads them only after it has decoded these. Chunks before a damaged one
    # count.
    with PngStream(BytesIO(content[len(_SIGNATURE) :])) as png:
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
