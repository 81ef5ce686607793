"""A piece: one self-contained text to learn from, be it a file, a record or a conversation. And what identifies it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "completion", "chat"]
# {"role": "system" | "user" | "assistant", "content": ...}; and "weight": "0" where an assistant's turn is context only.
Message = Mapping[str, str]


@dataclass(frozen=True)
class Piece:
    """name: for reports ("file.txt", "file.jsonl:17", "file.txt, document 3", "folder/file.txt,
    pages 3-9"). text: what is to be learned, as
    plain text: the whole text, the completion, or the assistant's turns. prompt: only of a completion. messages: only
    of a chat, all turns.
    """

    name: str
    kind: Kind
    text: str
    prompt: str = ""
    messages: tuple[Message, ...] = ()

    @property
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
    """A chat; its `text` follows from the assistant's turns that are learned."""
    turns = tuple(messages)
    learned = "\n\n".join(message["content"] for message in turns if is_learned(message))
    return Piece(name, "chat", learned, messages=turns)


def is_learned(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("weight") != "0"


def exchanges(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """(the system messages that open the chat, the rest cut in front of each user turn that follows another's).

    Every exchange but the first opens with a user turn, so any run of them renders through templates that insist on
    alternation.
    """
    opening = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    found: list[list[Message]] = []
    for before, message in zip([None, *messages[opening:]], messages[opening:], strict=False):
        if before is None or (message["role"] == "user" and before["role"] != "user"):
            found.append([])
        found[-1].append(message)
    return list(messages[:opening]), found


def data_hash(pieces: Iterable[Piece]) -> str:
    """SHA-256 over what the pieces say, whatever their names and their order: the same data gives the same hash."""
    digests = sorted(digest(piece) for piece in pieces)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def digest(piece: Piece) -> str:
    """SHA-256 of one piece in canonical form (JSON, sorted keys, UTF-8)."""
    turns = [dict(message) for message in piece.messages]
    told = {"kind": piece.kind, "text": "" if turns else piece.text, "prompt": piece.prompt, "messages": turns}
    return hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
