"""Character cards: SillyTavern's PNG or JSON files, versions 1, 2 and 3 of their specification; and lorebooks.

A PNG holds the card as base64 of JSON in a text chunk: `ccv3` where there is one, else `chara`. Pixels are not decoded.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from sordino.errors import BadInput, MissingExtra

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXPECTED = "a character card: a PNG or a JSON file of SillyTavern's kind"
# The user's name, where none is given.
USER = "You"
_PLACEHOLDER = re.compile(r"\{\{(char|user)\}\}|<(bot|user)>", re.IGNORECASE)
# The separator of a card's examples, and the one that a prompt has in its place, as in SillyTavern.
_START, _SEPARATOR = re.compile(r"<START>", re.IGNORECASE), "\n***\n"
_MOST_NAME = 300
# Characters of a text with its placeholders filled in: a name in place of each may make it far longer than its file.
_MOST_FILLED = 1_000_000


@dataclass(frozen=True)
class LoreEntry:
    """A paragraph of a lorebook. keys: it is used where one of them occurs, and, if there are any, one of secondary_keys. constant:
    always used. order: of entries that are used together.
    """

    content: str
    keys: tuple[str, ...] = ()
    secondary_keys: tuple[str, ...] = ()
    constant: bool = False
    case_sensitive: bool = False
    order: int = 0


@dataclass(frozen=True)
class Lorebook:
    """The entries that are switched on. patterns: how many of these have patterns as keys, which are not run; they are left without
    keys.
    """

    entries: tuple[LoreEntry, ...] = ()
    patterns: int = 0

    @property
    def text(self) -> str:
        return "\n\n".join(entry.content for entry in self.entries)


@dataclass(frozen=True)
class Card:
    """A character. Texts have their placeholders: `filled`. greetings: the first message, then others to begin with. examples: how
    the character talks. after: instructions that follow the others.
    """

    name: str
    description: str = ""
    personality: str = ""
    scenario: str = ""
    greetings: tuple[str, ...] = ()
    examples: str = ""
    system: str = ""
    after: str = ""
    lore: Lorebook = Lorebook()

    @property
    def text(self) -> str:
        """The text in front of a chat with the character, without its lorebook."""
        examples = _SEPARATOR.join(filter(None, (part.strip() for part in _START.split(self.examples))))
        parts = (
            "You are {{char}}.",
            self.system,
            self.description,
            self.personality and f"Personality: {self.personality}",
            self.scenario and f"Scenario: {self.scenario}",
            examples and f"Examples of how {{{{char}}}} talks:\n{examples}",
            self.after,
        )
        return "\n\n".join(filter(None, parts))


def card_of(content: bytes) -> Card:
    """The card in a file. Raises BadInput."""
    document = document_of(content)
    # Versions 2 and 3 put the fields of version 1 into `data`.
    card = document.get("data", document) if isinstance(document, dict) else None
    if not isinstance(card, dict) or not _text(card.get("name")):
        raise BadInput("the file contains no character", expected=_EXPECTED)
    name = _text(card["name"])
    if len(name) > _MOST_NAME:
        raise BadInput("the character's name is too long", expected=f"at most {_MOST_NAME} characters", got=len(name))
    others = card.get("alternate_greetings")
    greetings = [card.get("first_mes"), *(others if isinstance(others, list) else [])]
    return Card(
        name,
        description=_text(card.get("description")),
        personality=_text(card.get("personality")),
        scenario=_text(card.get("scenario")),
        greetings=tuple(filter(None, map(_text, greetings))),
        examples=_text(card.get("mes_example")),
        system=_text(card.get("system_prompt")),
        after=_text(card.get("post_history_instructions")),
        lore=lore_of(card.get("character_book")),
    )


def filled(text: str, name: str, user: str = USER) -> str:
    """A text with its placeholders for the two speakers filled in. Raises BadInput where that makes it too long."""
    names = {"char": name, "bot": name, "user": user}
    found = [(match.group(1) or match.group(2)).lower() for match in _PLACEHOLDER.finditer(text)]
    length = len(text) + sum(len(names[one]) for one in found)
    if length > _MOST_FILLED:
        raise BadInput(
            "too long with its placeholders filled in",
            expected=f"at most {_MOST_FILLED:,} characters",
            got=f"{length:,}",
        )
    return _PLACEHOLDER.sub(lambda match: names[(match.group(1) or match.group(2)).lower()], text)


def document_of(content: bytes) -> Any:
    """The JSON of a card or a lorebook, or in a card's picture. Raises BadInput."""
    text = _text_in_png(content) if content.startswith(SIGNATURE) else content
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput("not a character card", expected=_EXPECTED) from None


def lore_of(book: object) -> Lorebook:
    """A lorebook: of a card, or a file of its own. Empty where it is none."""
    entries = book.get("entries") if isinstance(book, dict) else None
    listed = list(entries.values()) if isinstance(entries, dict) else entries if isinstance(entries, list) else []
    on = [
        one
        for one in listed
        if isinstance(one, dict) and one.get("enabled", True) and not one.get("disable") and _text(one.get("content"))
    ]
    return Lorebook(tuple(map(_entry, on)), sum(map(_has_patterns, on)))


def _entry(one: Mapping[str, Any]) -> LoreEntry:
    # SillyTavern's own files have other names than cards.
    order = one.get("insertion_order", one.get("order"))
    return LoreEntry(
        _text(one["content"]),
        () if _has_patterns(one) else _keys(one.get("keys", one.get("key"))),
        _keys(one.get("secondary_keys", one.get("keysecondary"))) if one.get("selective") else (),
        one.get("constant") is True,
        (one.get("case_sensitive") or one.get("caseSensitive")) is True,
        order if type(order) is int else 0,
    )


def _has_patterns(one: Mapping[str, Any]) -> bool:
    keys = _keys(one.get("keys", one.get("key")))
    return one.get("use_regex") is True or any(len(key) > 2 and key[0] == "/" and "/" in key[1:] for key in keys)


def _keys(value: object) -> tuple[str, ...]:
    return tuple(filter(None, map(_text, value))) if isinstance(value, list) else ()


def _text(value: object) -> str:
    # JSON may hold a lone surrogate, which has no encoding.
    return value.strip().encode("utf-8", "replace").decode() if isinstance(value, str) else ""


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
        raise BadInput("the picture contains no character card", expected=_EXPECTED)
    try:
        return base64.b64decode(text, validate=False)
    except ValueError:
        raise BadInput("the card in the picture is damaged", expected=_EXPECTED) from None
