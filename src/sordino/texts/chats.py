"""Logs of the programs people write with: SillyTavern chats and KoboldAI stories, to pieces.

SillyTavern keeps a chat as JSONL: a header (`user_name`, `character_name`, `chat_metadata`; older files lack some),
then a message a line: `name`, `is_user`, `mes`, and `is_system` for what the user hid from the model. KoboldAI keeps
a story as one JSON object: `gamestarted`, `prompt` (the opening) and `actions` (what followed), which are a list of
strings, or an object by running number, or KoboldAI United's `{"actions": {number: {"Selected Text": ...}}}`.
KoboldAI Lite marks turns inside them with {{[INPUT]}} and {{[OUTPUT]}}.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sordino.errors import DataError
from sordino.texts.pieces import Message, Piece, chat

Record = Mapping[str, Any]
Numbered = tuple[int, Record]

_HEADER = ("chat_metadata", "user_name", "character_name")
_CONTENT = frozenset({"mes", "text", "messages", "prompt", "completion"})


def is_chat_header(record: Record) -> bool:
    # Role-play data has columns of the same names beside its text.
    return not _CONTENT & record.keys() and any(key in record for key in _HEADER)


def is_chat_log(first: Record) -> bool:
    """Whether a JSONL file that opens with this record is a SillyTavern chat."""
    return is_chat_header(first) or ("mes" in first and ("is_user" in first or "name" in first))


def chat_log_pieces(
    records: Iterable[Numbered], name: str, path: object, speaker: str | None, names: set[str], tally: Counter[str]
) -> Iterator[Piece]:
    """One chat, or several one after the other, each behind its header. `names` collects who speaks.

    The labelled turns are the speaker's, or without one everybody's but the user's; they become the assistant's.
    """
    turns: list[tuple[str, bool, str]] = []
    title = name
    for number, record in records:
        if is_chat_header(record):
            if turns:
                yield chat(title, _messages(turns))
                turns, title = [], f"{name}:{number}"
            continue
        who, is_user, text = _turn(record, f"{path}:{number}")
        names.add(who)
        if record.get("is_system"):
            tally["hidden"] += 1
        elif text.strip():
            labelled = not is_user if speaker is None else who.casefold() == speaker.casefold()
            turns.append((who, labelled, text))
    yield chat(title, _messages(turns))


def _turn(record: Record, where: str) -> tuple[str, bool, str]:
    who, is_user, text = record.get("name", ""), record.get("is_user", False), record.get("mes")
    if not isinstance(text, str) or not isinstance(who, str) or not isinstance(is_user, bool):
        raise DataError(
            "this is not a chat message",
            where=where,
            expected="`name` and `mes` as text, `is_user` as true or false",
            got=f"the keys {', '.join(record) or 'none'}",
        )
    return who, is_user, text


def _messages(turns: list[tuple[str, bool, str]]) -> list[Message]:
    """Turns as messages that alternate: neighbours of one role become one. Names are written where a role has
    several.
    """
    cast = {role: {who for who, labelled, _ in turns if labelled is role} for role in (True, False)}
    messages: list[dict[str, str]] = []
    for who, labelled, text in turns:
        role = "assistant" if labelled else "user"
        said = f"{who}: {text}" if len(cast[labelled]) > 1 and who else text
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n\n" + said
        else:
            messages.append({"role": role, "content": said})
    return list(messages)


def is_story(record: Record) -> bool:
    return "actions" in record and ("gamestarted" in record or "prompt" in record)


def story_piece(record: Record, name: str, path: object, tally: Counter[str]) -> Piece:
    """The story as one text; one with {{[INPUT]}} and {{[OUTPUT]}} marks as a chat. Memory and notes are not part of
    it.
    """
    opening = record.get("prompt", "")
    actions = record["actions"]
    if isinstance(actions, Mapping) and isinstance(actions.get("actions"), (Mapping, list)):
        actions = actions["actions"]
    if isinstance(actions, Mapping):
        actions = [actions[key] for key in sorted(actions, key=_running_number)]
    parts = [_action_text(action) for action in actions] if isinstance(actions, list) else [None]
    if not isinstance(opening, str) or None in parts:
        raise DataError(
            "the KoboldAI story cannot be read",
            where=path,
            expected="`prompt` as text and `actions` as a list or an object of texts",
            got=f"`actions` of another shape ({type(record['actions']).__name__})",
        )
    if record.get("memory") or record.get("authorsnote"):
        tally["memory"] += 1
    text = opening + "".join(part for part in parts if part)
    return chat(name, _marked_turns(text)) if "{{[OUTPUT]}}" in text else Piece(name, "text", text)


def _running_number(key: str) -> tuple[int, str]:
    return (int(key), "") if key.isascii() and key.isdigit() and len(key) < 16 else (1 << 62, key)


def _action_text(action: object) -> str | None:
    if isinstance(action, Mapping):
        action = action.get("Selected Text", action.get("text"))
    return action if isinstance(action, str) else None


def _marked_turns(text: str) -> list[Message]:
    roles = {"{{[INPUT]}}": "user", "{{[OUTPUT]}}": "assistant", "{{[SYSTEM]}}": "system"}
    parts = re.split(r"(\{\{\[(?:INPUT|OUTPUT|SYSTEM)\]\}\})", text)
    turns = [{"role": "user", "content": parts[0].strip()}]
    turns += [
        {"role": roles[mark], "content": said.strip()} for mark, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return [turn for turn in turns if turn["content"]]
