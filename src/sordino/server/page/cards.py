"""Character cards: SillyTavern's PNG or JSON files, versions 1, 2 and 3 of their specification.

A PNG holds the card as base64 of JSON in a text chunk: `ccv3` where there is one, else `chara`. Pixels are not looked at.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Annotated

from fastapi import APIRouter, File

from sordino.errors import BadInput
from sordino.server.errors import Refused

router = APIRouter(prefix="/ui/cards", include_in_schema=False)

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_BYTES = 4 << 20
_EXPECTED = "a character card: a PNG or a JSON file of SillyTavern's kind"


@router.post("")
def read(file: Annotated[bytes, File()]) -> dict[str, str]:
    """{name, description, personality, scenario, first_message, examples, system, after}: what a chat needs of a card."""
    try:
        return card_of(file)
    except BadInput as error:
        raise Refused(400, error.message, field="file") from error


def card_of(content: bytes) -> dict[str, str]:
    """The card in a file. Raises BadInput."""
    text = _in_png(content) if content.startswith(_SIGNATURE) else content
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput("not a character card", expected=_EXPECTED) from None
    # Versions 2 and 3 put the fields of version 1 into `data`.
    card = said.get("data", said) if isinstance(said, dict) else None
    if not isinstance(card, dict) or not isinstance(card.get("name"), str) or not card["name"].strip():
        raise BadInput("the file holds no character", expected=_EXPECTED)
    name = card["name"].strip()

    def field(key: str) -> str:
        value = card.get(key)
        if not isinstance(value, str):
            return ""
        # What cards write for the two who talk. The user is asked for no name.
        plain = (
            value.replace("{{char}}", name).replace("<BOT>", name).replace("{{user}}", "You").replace("<USER>", "You")
        )
        return _whole(plain.strip())

    names = {
        "description": "description", "personality": "personality", "scenario": "scenario", "first_message": "first_mes",
        "examples": "mes_example", "system": "system_prompt", "after": "post_history_instructions",
    }  # fmt: skip
    return {"name": _whole(name), **{ours: field(theirs) for ours, theirs in names.items()}}


def _whole(text: str) -> str:
    """JSON may say half of a character, which is in no encoding."""
    return text.encode("utf-8", "replace").decode()


def _in_png(content: bytes) -> bytes:
    found: dict[bytes, bytes] = {}
    at = len(_SIGNATURE)
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            key, _, rest = body.partition(b"\0")
            found.setdefault(key.lower(), _text(kind, rest))
        at += size + 12
    text = found.get(b"ccv3") or found.get(b"chara")
    if not text:
        raise BadInput("the picture holds no character card", expected=_EXPECTED)
    try:
        return base64.b64decode(text, validate=False)
    except ValueError:
        raise BadInput("the card in the picture is damaged", expected=_EXPECTED) from None


def _text(kind: bytes, rest: bytes) -> bytes:
    """The text of a chunk behind its keyword (PNG specification, 11.3.3)."""
    if kind == b"tEXt":
        return rest
    if kind == b"zTXt":
        return _inflated(rest[1:])
    packed, rest = rest[:1] == b"\1", rest[2:]
    body = rest.partition(b"\0")[2].partition(b"\0")[2]
    return _inflated(body) if packed else body


def _inflated(packed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, _MOST_BYTES)
    except zlib.error:
        return b""
