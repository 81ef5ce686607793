"""Long texts and chats cut into pages, so that one work can be in two sets with no page in both."""

from __future__ import annotations

from collections.abc import Sequence

from sordino.texts.pieces import Message, Piece, chat, exchanges

PAGE = 4000  # characters: about 1,024 tokens of English


def pages(piece: Piece, size: int) -> list[Piece]:
    """The piece cut into parts of about `size` characters: a text after paragraphs, a chat before user turns, a completion never.
    `joined` puts them together again.
    """
    if piece.kind == "text":
        return [Piece(piece.name, "text", text) for text in _text_pages(piece.text, size)]
    if piece.kind == "chat":
        return [chat(piece.name, turns) for turns in _chat_pages(piece.messages, size)]
    return [piece]


def joined(piece: Piece, parts: Sequence[Piece], first: int, end: int) -> Piece:
    """Pages `first` to `end` (exclusive) of `pages(piece)` as one piece; a chat keeps its system messages."""
    name = f"{piece.name}, page {end}" if end - first == 1 else f"{piece.name}, pages {first + 1}-{end}"
    if piece.kind == "chat":
        opening, _ = exchanges(piece.messages)
        return chat(name, [*opening, *(message for part in parts[first:end] for message in part.messages)])
    return Piece(name, piece.kind, "".join(part.text for part in parts[first:end]), piece.prompt)


def _text_pages(text: str, size: int) -> list[str]:
    found = []
    start = 0
    while len(text) - start > 1.5 * size:
        cut = _cut(text, start, size)
        found.append(text[start:cut])
        start = cut
    return [*found, text[start:]]


def _cut(text: str, start: int, size: int) -> int:
    """Where to cut, between a half and five quarters of a page: after a paragraph, else a line, else a sentence, else a word, else
    at exactly `size`.
    """
    low, high = start + max(1, size // 2), start + max(1, size * 5 // 4)
    for border in ("\n\n", "\n", ". ", " "):
        at = text.rfind(border, low, high)
        if at >= 0:
            return at + len(border)
    return start + max(1, size)


def _chat_pages(messages: Sequence[Message], size: int) -> list[list[Message]]:
    found: list[list[Message]] = []
    room = 0
    for exchange in exchanges(messages)[1]:
        if room <= 0:
            found.append([])
            room = size
        found[-1] += exchange
        room -= sum(len(message["content"]) for message in exchange)
    return found
