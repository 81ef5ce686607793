"""Chat logs and stories to pieces: SillyTavern, Discord, text-generation-webui, KoboldAI.

SillyTavern keeps a chat as JSONL: a header (`user_name`, `character_name`, `chat_metadata`; older files lack some),
then a message a line: `name`, `is_user`, `mes`, and `is_system` for messages hidden from the model.
DiscordChatExporter writes a channel as CSV (AuthorID, Author, Date, Content, Attachments, Reactions) or as one JSON
object. text-generation-webui keeps pairs of [user, assistant] under `internal`, and as HTML under `visible`.

A story of KoboldAI is one JSON object: `gamestarted`, `prompt` (the opening) and `actions` (what followed), which are a list of
strings, or an object by number, or KoboldAI United's `{"actions": {number: {"Selected Text": ...}}}`. KoboldAI Lite marks turns
inside them with {{[INPUT]}}, {{[OUTPUT]}} and {{[SYSTEM]}}, their ends with {{[INPUT_END]}} and so on; or, with
`raw_instruct_tags`, with the tags that `savedsettings` names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from sordino.errors import DataError
from sordino.texts.markers import KOBOLD, TurnMarks, marked_turns
from sordino.texts.pieces import Message, Piece, chat
from sordino.texts.records import Record, pair_turns
from sordino.texts.tally import Tally, some

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
    records: Iterable[Numbered], name: str, path: object, speaker: str | None, tally: Tally
) -> Iterator[Piece]:
    """One chat, or several, each after its header.

    The turns to learn are the speaker's, by default everybody's but the user's. They become the assistant's.
    """
    tally.chat_logs += 1
    turns: list[tuple[str, bool, str]] = []
    title = name
    for number, record in records:
        if is_chat_header(record):
            if turns:
                yield chat(title, _messages(turns))
                turns, title = [], f"{name}:{number}"
            continue
        who, is_user, text = _turn(record, f"{path}:{number}")
        tally.names.add(who)
        if record.get("is_system"):
            tally.counts["hidden"] += 1
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
            got=f"the keys {some(record)}",
        )
    return who, is_user, text


def _messages(turns: list[tuple[str, bool, str]]) -> list[Message]:
    """Turns as alternating messages: adjacent turns of one role are joined. Names are written where a role has several."""
    cast = {role: {who for who, labelled, _ in turns if labelled is role} for role in (True, False)}
    messages: list[dict[str, str]] = []
    for who, labelled, text in turns:
        role = "assistant" if labelled else "user"
        content = f"{who}: {text}" if len(cast[labelled]) > 1 and who else text
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n\n" + content
        else:
            messages.append({"role": role, "content": content})
    return list(messages)


def is_discord(first: Record) -> bool:
    """Whether a table whose first row this is holds a Discord channel."""
    return {"authorid", "author", "content", "date"} <= first.keys()


def discord_piece(rows: Iterable[Record], name: str, speaker: str | None, tally: Tally) -> Piece:
    """A channel: with a speaker, a chat in which that person answers, else one text, a message a line. Names are written if there
    are several.
    """
    tally.chat_logs += 1
    lines = [(str(row["author"]), str(row["content"])) for row in rows if str(row["content"]).strip()]
    names = {who for who, _ in lines}
    tally.names |= names
    if speaker is not None:
        tally.understood[f"Discord channels read as chats in which {speaker} answers"] += 1
        return chat(name, _messages([(who, who.casefold() == speaker.casefold(), text) for who, text in lines]))
    tally.understood["Discord channels read as texts, a message a line (--speaker NAME makes chats of them)"] += 1
    return Piece(name, "text", "".join(f"{who}: {text}\n" if len(names) > 1 else f"{text}\n" for who, text in lines))


def discord_rows(document: object) -> list[Record] | None:
    """The messages of a channel in DiscordChatExporter's JSON as rows of its CSV; None for anything else."""
    if not isinstance(document, Mapping) or "channel" not in document or not isinstance(document.get("messages"), list):
        return None
    rows: list[Record] = []
    for message in document["messages"]:
        author = message.get("author") if isinstance(message, Mapping) else None
        if not isinstance(author, Mapping) or not isinstance(message.get("content"), str):
            return None
        rows.append({"author": author.get("name", ""), "content": message["content"]})
    return rows


def is_webui_history(document: Record) -> bool:
    return isinstance(document.get("internal"), list)


def webui_piece(document: Record, name: str, path: object, tally: Tally) -> Piece:
    """A history of text-generation-webui, without the marker that its greeting answers."""
    tally.understood["histories of text-generation-webui read as chats"] += 1
    tally.unused_keys |= document.keys() - {"internal", "visible"}
    turns = pair_turns(document["internal"], "internal", path)
    return chat(name, [turn for turn in turns if turn["content"] != "<|BEGIN-VISIBLE-CHAT|>"])


# KoboldAI --------------------------------------------------------------------------------------------------------------

_OPENING = {"instruct_starttag": "user", "instruct_endtag": "assistant", "instruct_systag": "system"}
_TAGS = (*_OPENING, *(f"{key}_end" for key in _OPENING))


def is_story(record: Record) -> bool:
    return "actions" in record and ("gamestarted" in record or "prompt" in record)


def story_piece(record: Record, name: str, path: object, tally: Tally) -> Piece:
    """The story as one text, or as a chat if it has marks of turns. Memory and notes are left out."""
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
        tally.counts["memory"] += 1
    text = opening + "".join(part for part in parts if part)
    for marks in (KOBOLD, _own_marks(record)):
        if marks and any(marks.roles[match[1]] == "assistant" for match in marks.opening.finditer(text)):
            tally.understood["KoboldAI stories with marks of turns read as chats"] += 1
            return chat(name, marked_turns(text, marks))
    return Piece(name, "text", KOBOLD.closing.sub("", KOBOLD.opening.sub("", text)))


def _own_marks(record: Record) -> TurnMarks | None:
    """The marks in the settings of a story in KoboldAI Lite's instruct mode, which writes them unchanged."""
    settings = record.get("savedsettings")
    if not isinstance(settings, Mapping) or str(settings.get("opmode")) != "4":
        return None
    tags = {key: settings[key].replace("\\n", "\n").strip() for key in _TAGS if isinstance(settings.get(key), str)}
    roles = {tags[key]: role for key, role in _OPENING.items() if tags.get(key)}
    if "assistant" not in roles.values() or "user" not in roles.values():
        return None
    closing = [tags[f"{key}_end"] for key in _OPENING if tags.get(f"{key}_end")]
    return TurnMarks(_any_of(roles), _any_of(closing or roles), roles)


def _any_of(tags: Iterable[str]) -> re.Pattern[str]:
    return re.compile(f"({'|'.join(re.escape(tag) for tag in sorted(tags, key=len, reverse=True))})")


def _running_number(key: str) -> tuple[int, str]:
    return (int(key), "") if key.isascii() and key.isdigit() and len(key) < 16 else (1 << 62, key)


def _action_text(action: object) -> str | None:
    if isinstance(action, Mapping):
        action = action.get("Selected Text", action.get("text"))
    return action if isinstance(action, str) else None
