"""A piece: one self-contained text to learn from (a file, a record or a conversation), and its hash."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Kind = Literal["text", "completion", "chat"]
# {"role": "system" | "user" | "assistant", "content": ...}; and "weight": "0" where an assistant's turn is context only.
Message = Mapping[str, str]


# Characters from which on compressing a text pays.
_LONG = 512


class _LongText:
    """The text of a piece, held plain or compressed."""

    def __get__(self, piece: Piece | None, owner: type) -> str:
        if piece is None:
            # For `dataclass`: the field has no default.
            raise AttributeError("text")
        held: str | bytes = piece.__dict__["_text"]
        return held if isinstance(held, str) else zlib.decompress(held).decode("utf-8", "surrogatepass")

    def __set__(self, piece: Piece, text: str) -> None:
        piece.__dict__["_text"] = text


@dataclass(frozen=True)
class Piece:
    """name: for reports ("file.txt", "file.jsonl:17", "file.txt, document 3", "folder/file.txt, pages 3-9"). text: what is to be
    learned, as plain text: the whole text, the completion, or the assistant's turns. prompt: only of a completion. messages: all
    turns of a chat.
    """

    name: str
    kind: Kind
    text: str = _LongText()  # type: ignore[assignment]
    prompt: str = ""
    messages: tuple[Message, ...] = ()

    def pack(self) -> None:
        """Hold the text compressed: pieces stay in memory for a whole run."""
        text = self.text
        if len(text) >= _LONG:
            self.__dict__["_text"] = zlib.compress(text.encode("utf-8", "surrogatepass"), 1)

    @cached_property
    def size(self) -> int:
        """Characters, the unlabelled ones included."""
        if self.kind == "chat":
            return sum(len(message["content"]) for message in self.messages)
        return len(self.prompt) + len(self.text)

    @property
    def words(self) -> str:
        """All of its text in reading order."""
        if self.kind == "chat":
            return "\n".join(message["content"] for message in self.messages)
        return self.prompt + self.text


def chat(name: str, messages: Iterable[Message]) -> Piece:
    """A chat; its `text` is made of the assistant's turns that are learned."""
    turns = tuple(messages)
    learned = "\n\n".join(message["content"] for message in turns if is_learned(message))
    return Piece(name, "chat", learned, messages=turns)


def is_learned(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("weight") != "0"


def exchanges(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """(the system messages that open the chat, the rest cut before each user turn that follows another role's).

    Every exchange but the first opens with a user turn, so templates that insist on alternation render any run of them.
    """
    opening = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    found: list[list[Message]] = []
    for before, message in zip([None, *messages[opening:]], messages[opening:], strict=False):
        if before is None or (message["role"] == "user" and before["role"] != "user"):
            found.append([])
        found[-1].append(message)
    return list(messages[:opening]), found


def data_hash(pieces: Iterable[Piece]) -> str:
    """SHA-256 of the pieces' content. Their names and order do not count."""
    digests = sorted(digest(piece) for piece in pieces)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def digest(piece: Piece) -> str:
    """SHA-256 of one piece in canonical form (JSON, sorted keys, UTF-8)."""
    turns = [dict(message) for message in piece.messages]
    content = {"kind": piece.kind, "text": "" if turns else piece.text, "prompt": piece.prompt, "messages": turns}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
