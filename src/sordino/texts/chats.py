"""Chat logs to pieces: SillyTavern, Discord, text-generation-webui.

SillyTavern keeps a chat as JSONL: a header (`user_name`, `character_name`, `chat_metadata`; older files lack some),
then a message a line: `name`, `is_user`, `mes`, and `is_system` for messages hidden from the model.
DiscordChatExporter writes a channel as CSV (AuthorID, Author, Date, Content, Attachments, Reactions) or as one JSON
object. text-generation-webui keeps pairs of [user, assistant] under `internal`, and as HTML under `visible`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from sordino.errors import DataError
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
