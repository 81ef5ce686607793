"""Markers in texts: where a document ends, and whose turn begins.

A model knows them as control tokens, but in plain text they are tokenized as letters, so they are never learned: texts are split
at the ends of documents, and a text in a chat template becomes a chat.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from sordino.texts.pieces import Message, Piece, chat
from sordino.texts.tally import Tally

_DOCUMENT = (
    "<|endoftext|>", "<|end_of_text|>", "<|begin_of_text|>", "<|startoftext|>", "<|endofdocument|>", "<|end_of_document|>",
    "<|eod|>", "<|eos|>", "<|bos|>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
)  # fmt: skip
# In a text that is not a chat, the end of a turn ends a document too.
_TURN = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|END_OF_TURN_TOKEN|>", "<end_of_turn>", "<turn|>",
    "<|end_of_turn|>", "<|eot|>", "[|endofturn|]",
)  # fmt: skip
# `<s>` also strikes out words in HTML and Markdown, so these count only at the beginning and end of lines.
_LINE_END = ("</s>", "<eos>", "[EOS]", "<EOS_TOKEN>")
_LINE_START = ("<s>", "<bos>", "[BOS]", "<BOS_TOKEN>")


@dataclass(frozen=True)
class TurnMarks:
    """How a program marks turns. opening: a pattern whose first group is a key of `roles`. closing: the end of a turn."""

    opening: re.Pattern[str]
    closing: re.Pattern[str]
    roles: dict[str, str]


def _template(opening: str, closing: str, **roles: str) -> TurnMarks:
    known = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", **roles}
    return TurnMarks(re.compile(opening), re.compile(closing), known)


KOBOLD = TurnMarks(
    re.compile(r"\{\{\[(INPUT|OUTPUT|SYSTEM)\]\}\}"),
    re.compile(r"\{\{\[(?:INPUT|OUTPUT|SYSTEM)_END\]\}\}"),
    {"INPUT": "user", "OUTPUT": "assistant", "SYSTEM": "system"},
)
_TEMPLATES = {
    "ChatML": _template(r"<\|im_start\|>[ \t]*(system|developer|user|assistant)\b[ \t]*\n?", r"<\|im_end\|>"),
    "Llama 3": _template(
        r"<\|start_header_id\|>(system|user|assistant)<\|end_header_id\|>", r"<\|eot_id\|>|<\|eom_id\|>"
    ),
    "Llama 4": _template(r"<\|header_start\|>(system|user|assistant)<\|header_end\|>", r"<\|eot\|>|<\|eom\|>"),
    "Gemma": _template(r"<start_of_turn>(system|user|model)\b[ \t]*\n?", r"<end_of_turn>", model="assistant"),
    "Gemma 4": _template(r"<\|turn>(system|user|model)\b[ \t]*\n?", r"<turn\|>", model="assistant"),
    "Command R": _template(
        r"<\|START_OF_TURN_TOKEN\|><\|(SYSTEM|USER|CHATBOT)_TOKEN\|>",
        r"<\|END_OF_TURN_TOKEN\|>",
        SYSTEM="system",
        USER="user",
        CHATBOT="assistant",
    ),
    "EXAONE": _template(r"\[\|(system|user|assistant)\|\]", r"\[\|endofturn\|\]"),
    "KoboldAI Lite": KOBOLD,
    "Zephyr or Phi": _template(r"<\|(system|user|assistant)\|>", r"</s>|<\|end\|>"),
    "Llama 2 or Mistral": TurnMarks(
        re.compile(r"(\[/?INST\])"), re.compile(r"</?s>"), {"[INST]": "user", "[/INST]": "assistant"}
    ),
}
_LLAMA_2_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)


# What no prose has: <|im_start|>, <｜User｜>, [|user|], {{[OUTPUT]}}.
_LIKE_A_MARKER = re.compile(r"<\|\w{1,40}\|?>|<｜[\w▁]{1,40}｜>|\[\|\w{1,40}\|\]|\{\{\[\w{1,40}\]\}\}")


def markers_left(text: str) -> set[str]:
    """What looks like a marker of some program or model in a text that is learned."""
    return set(_LIKE_A_MARKER.findall(text)) if any(mark in text for mark in ("|", "｜", "{{[")) else set()


def marked_turns(text: str, marks: TurnMarks) -> list[Message]:
    """The turns of a text, without their marks; text before the first mark is the user's."""
    turns: list[Message] = []
    role, start = "user", 0
    for match in marks.opening.finditer(text):
        turns.append({"role": role, "content": text[start : match.start()]})
        role, start = marks.roles[match[1]], match.end()
    turns.append({"role": role, "content": text[start:]})
    cleaned = [{**turn, "content": marks.closing.sub("", turn["content"]).strip()} for turn in turns]
    return [turn for turn in cleaned if turn["content"]]


def documents(piece: Piece, ends: Collection[str], tally: Tally) -> Iterator[Piece]:
    """The piece without end markers: a text is split at each, a completion or an assistant's turn ends at its first.

    ends: the base model's own markers. A text that begins with the marks of a chat template becomes a chat.
    """
    own = [end for end in ends if _is_control(end)]
    if piece.kind == "text":
        yield from _text_documents(piece, own, tally)
        return
    marker = _marker(piece.words, own)
    if marker is None:
        yield piece
    elif piece.kind == "chat":
        turns = [_ended_turn(turn, marker) for turn in piece.messages]
        tally.counts["ended"] += turns != list(piece.messages)
        yield chat(piece.name, turns)
    else:
        text = _up_to(piece.text, marker)
        tally.counts["ended"] += text != piece.text
        yield replace(piece, text=text, prompt=_without_outer(piece.prompt, marker))


def _marker(text: str, own: Collection[str]) -> re.Pattern[str] | None:
    """A pattern of the markers in a text, or None."""
    if "<" not in text and "[" not in text:
        return None

    def present(marks: Collection[str]) -> str:
        return "|".join(re.escape(mark) for mark in marks if mark in text)

    anywhere, ends, starts = present((*_DOCUMENT, *_TURN, *own)), present(_LINE_END), present(_LINE_START)
    parts = [anywhere] * bool(anywhere)
    if ends:
        parts.append(rf"(?:{ends})(?=[ \t\r]*(?:\n|\Z{f'|{starts}' if starts else ''}))")
    if starts:
        behind = "".join(f"|(?<={re.escape(mark)})" for mark in _LINE_END)
        parts.append(f"(?:^{behind})(?:{starts})")
    return re.compile("|".join(parts), re.MULTILINE) if parts else None


def _text_documents(piece: Piece, own: Collection[str], tally: Tally) -> Iterator[Piece]:
    found: list[str | list[Message]] = []
    text = piece.text
    borders = "|".join(re.escape(mark) for mark in _DOCUMENT if mark in text)
    for document in re.split(borders, text) if borders else [text]:
        marker = _marker(document, own)
        found += _template_chats(document, tally) or (marker.split(document) if marker else [document])
    found = [part for part in found if not isinstance(part, str) or part.strip()]
    if not found or found == [text]:
        yield piece if found else replace(piece, text="")  # its outer line ends are part of it
        return
    tally.counts["marked"] += any(isinstance(part, str) for part in found)
    for number, part in enumerate(found, start=1):
        name = piece.name if len(found) == 1 else f"{piece.name}, document {number}"
        yield Piece(name, "text", part.strip("\r\n")) if isinstance(part, str) else chat(name, part)


def begins_as_chat(text: str) -> bool:
    """Whether a text begins with a chat template's marks."""
    begun = _begun(text)
    return any(marks.opening.match(begun) for marks in _TEMPLATES.values())


def _begun(text: str) -> str:
    return re.sub(r"\A\s*(?:<s>|<bos>|<BOS_TOKEN>)?\s*", "", text)


def _template_chats(text: str, tally: Tally) -> list[list[Message]]:
    """The chats in a text that begins with a chat template's marks and has an answer. A system message begins another chat."""
    begun = _begun(text)
    for name, marks in _TEMPLATES.items():
        if marks.opening.match(begun):
            turns = _with_system(marked_turns(begun, marks))
            if {"user", "assistant"} <= {turn["role"] for turn in turns}:
                tally.understood[f"texts in the chat template of {name} read as chats"] += 1
                starts = [i for i, turn in enumerate(turns) if i == 0 or turn["role"] == "system"]
                return [turns[i:j] for i, j in pairwise([*starts, len(turns)])]
    return []


def _with_system(turns: list[Message]) -> list[Message]:
    """Llama 2 puts the system message into the user's first turn."""
    system = _LLAMA_2_SYSTEM.match(turns[0]["content"]) if turns else None
    if system is None:
        return turns
    first = {"role": "user", "content": turns[0]["content"][system.end() :].strip()}
    return [{"role": "system", "content": system[1].strip()}, *[first] * bool(first["content"]), *turns[1:]]


def _ended_turn(turn: Message, marker: re.Pattern[str]) -> Message:
    ended = (_up_to if turn["role"] == "assistant" else _without_outer)(turn["content"], marker)
    return turn if ended == turn["content"] else {**turn, "content": ended}


def _up_to(text: str, marker: re.Pattern[str]) -> str:
    """The text up to its first marker, those at its beginning left out."""
    return marker.split(_without_outer(text, marker), maxsplit=1)[0]


def _without_outer(text: str, marker: re.Pattern[str]) -> str:
    """The text without markers at its beginning and end."""
    spans = [found.span() for found in marker.finditer(text)]
    start, end = 0, len(text)
    for first, last in spans:
        if text[start:first].strip():
            break
        start = last
    for first, last in reversed(spans):
        if last <= start or text[last:end].strip():
            break
        end = first
    return text[start:end]


def _is_control(marker: str) -> bool:
    """Whether a text with this marker in it can only mean the marker: some tokenizers end texts with a word or a line end."""
    return len(marker) > 2 and (marker[0] + marker[-1]) in ("<>", "[]")
