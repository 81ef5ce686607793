"""Files of several kinds to pieces: texts, records (JSONL, JSON, CSV), SillyTavern chats, KoboldAI stories.

Whatever was left out, repaired or not used is counted and told; a record that fits no accepted shape is an error with
its file and line.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from sordino.errors import DataError
from sordino.texts.chats import Numbered, Record, chat_log_pieces, is_chat_log, is_story, story_piece
from sordino.texts.files import MAX_BYTES, TextFile, cleaned, find_files, read_lines, read_text, without_gutenberg
from sordino.texts.pieces import Message, Piece, chat

SHAPES = "`text`, or `prompt` and `completion`, or `messages`"
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Reading:
    """The pieces in the order of their files, and notes: one line each about what was left out or repaired."""

    pieces: tuple[Piece, ...]
    notes: tuple[str, ...]


@dataclass
class _Tally:
    counts: Counter[str] = field(default_factory=Counter)
    unused_keys: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    chat_logs: int = 0


def read_pieces(paths: Sequence[Path], *, speaker: str | None = None) -> Reading:
    """Everything to learn from in files and folders.

    speaker: whose turns of a SillyTavern chat are learned; by default those of everybody but the user. Raises
    DataError: a missing or unreadable file, another encoding, a record of no known shape, an unknown speaker, no
    text.
    """
    files, notes = find_files(paths)
    tally = _Tally()
    pieces = []
    for file in files:
        for where, raw in _raw_pieces(file, speaker, tally):
            piece = _clean_piece(raw, where, tally)
            if piece is not None:
                pieces.append(piece)
    _check_speaker(speaker, tally)
    if not pieces:
        raise DataError(
            "no text to learn from", where=", ".join(map(str, paths)), got="; ".join(_told(tally)) or "nothing"
        )
    return Reading(tuple(pieces), (*notes, *_told(tally)))


def _raw_pieces(file: TextFile, speaker: str | None, tally: _Tally) -> Iterator[tuple[str, Piece]]:
    """(where, piece) as written in one file, before cleaning."""
    suffix = file.path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        yield from _from_records(file, _json_lines(file.path), speaker, tally)
    elif suffix in (".csv", ".tsv"):
        yield from _from_records(file, _csv_rows(file.path), speaker, tally)
    elif suffix == ".json":
        yield from _from_json(file, speaker, tally)
    else:
        yield str(file.path), Piece(file.name, "text", read_text(file.path))


def _from_records(
    file: TextFile, records: Iterator[Numbered], speaker: str | None, tally: _Tally
) -> Iterator[tuple[str, Piece]]:
    first = next(records, None)
    if first is None:
        tally.counts["empty"] += 1
        return
    records = chain([first], records)
    if is_chat_log(first[1]):
        tally.chat_logs += 1
        for piece in chat_log_pieces(records, file.name, file.path, speaker, tally.names, tally.counts):
            yield str(file.path), piece
    else:
        for number, record in records:
            where = f"{file.path}:{number}"
            yield where, _record_piece(record, f"{file.name}:{number}", where, tally.unused_keys)


def _from_json(file: TextFile, speaker: str | None, tally: _Tally) -> Iterator[tuple[str, Piece]]:
    """One JSON document: a KoboldAI story, or an array of records, which are numbered from 1."""
    document = _parsed(read_text(file.path), file.path, "save records as JSONL, one object a line")
    if isinstance(document, list):
        numbered = ((i, _object(item, f"{file.path}:{i}")) for i, item in enumerate(document, start=1))
        yield from _from_records(file, numbered, speaker, tally)
    elif isinstance(document, dict) and is_story(document):
        yield str(file.path), story_piece(document, file.name, file.path, tally.counts)
    else:
        raise DataError(
            "this JSON file is none that can be learned from",
            where=file.path,
            expected="a KoboldAI story (`prompt` and `actions`) or an array of records",
            got=f"the keys {_some(document)}" if isinstance(document, dict) else type(document).__name__,
        )


def _json_lines(path: Path) -> Iterator[Numbered]:
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path}:{number}"
            yield number, _object(_parsed(line, where, "JSONL holds one whole JSON object a line"), where)


def _parsed(text: str, where: object, do: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise DataError("this is not JSON", where=where, got=f"{error.msg} at {at}", do=do) from None
    except (ValueError, RecursionError):  # numbers of thousands of digits, nesting of thousands of brackets
        raise DataError("this JSON cannot be read", where=where, do=do) from None


def _object(value: object, where: object) -> Record:
    if not isinstance(value, dict):
        raise DataError(
            "this record is not an object", where=where, expected=f"keys {SHAPES}", got=type(value).__name__
        )
    return value


def _csv_rows(path: Path) -> Iterator[Numbered]:
    """Rows of a table with a header, by the line they end on. Spreadsheets of some countries write semicolons."""
    lines = (line for _, line in read_lines(path))
    header = next(lines, "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ";" if ";" in header and "," not in header else ","
    previous = csv.field_size_limit(MAX_BYTES)  # its default of 131,072 characters is less than a chapter
    try:
        # The line ends inside quotes belong to the text, so lines are handed over whole.
        rows = csv.reader(chain([header], lines), delimiter=delimiter, strict=True)
        keys = [key.strip().lower() for key in next(rows, [])]
        for row in rows:
            if not row:
                continue
            if len(row) != len(keys):
                raise DataError(
                    "a row does not fit its header",
                    where=f"{path}:{rows.line_num}",
                    expected=f"{len(keys)} fields ({', '.join(keys)})",
                    got=len(row),
                )
            yield rows.line_num, dict(zip(keys, row, strict=True))
    except csv.Error as error:
        raise DataError(f"this is not CSV ({error})", where=f"{path}:{rows.line_num}") from None
    finally:
        csv.field_size_limit(previous)


def _record_piece(record: Record, name: str, where: str, unused: set[str]) -> Piece:
    """The most specific shape that a record has; keys beyond it (id, label ...) are told, not used."""
    if "messages" in record:
        used, piece = {"messages"}, chat(name, _record_messages(record["messages"], where))
    elif "prompt" in record and "completion" in record:
        prompt, completion = _string(record, "prompt", where), _string(record, "completion", where)
        used, piece = {"prompt", "completion"}, Piece(name, "completion", completion, prompt)
    elif "text" in record:
        used, piece = {"text"}, Piece(name, "text", _string(record, "text", where))
    else:
        raise DataError(
            "a record of no known shape", where=where, expected=f"the keys {SHAPES}", got=f"the keys {_some(record)}"
        )
    unused.update(record.keys() - used)
    return piece


def _string(record: Record, key: str, where: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise DataError(f"`{key}` is not text", where=where, expected="a string", got=type(value).__name__)
    return value


def _record_messages(messages: object, where: str) -> list[Message]:
    if not isinstance(messages, list):
        do = "chats do not fit in a table: use JSONL" if isinstance(messages, str) else ""
        got = type(messages).__name__
        raise DataError("`messages` is not a list", where=where, expected="a list of objects", got=got, do=do)
    turns = []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        if isinstance(content, list):  # OpenAI's list of parts
            texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
            content = None if any(not isinstance(text, str) for text in texts) else "".join(map(str, texts))
        if role not in ROLES or not isinstance(content, str):
            raise DataError(
                "a message of no known shape",
                where=where,
                expected=f"`role` ({', '.join(ROLES)}) and `content` as text",
                got=f"role {role!r}, content {type(content).__name__}",
            )
        turns.append({"role": str(role), "content": content})
    return list(turns)


def _clean_piece(raw: Piece, where: str, tally: _Tally) -> Piece | None:
    """The piece with its characters in order; None, counted, if nothing in it is to be learned."""
    repaired = False

    def clean(text: str) -> str:
        nonlocal repaired
        text, changed = cleaned(text, where)
        repaired |= changed
        return text

    if raw.kind == "chat":
        piece = chat(raw.name, ({"role": turn["role"], "content": clean(turn["content"])} for turn in raw.messages))
    else:
        piece = replace(raw, text=clean(raw.text), prompt=clean(raw.prompt))
    if not piece.text.strip():
        tally.counts["unlabelled" if piece.words.strip() else "empty"] += 1
        return None
    tally.counts["repaired"] += repaired
    return _trimmed(piece, tally)


def _trimmed(piece: Piece, tally: _Tally) -> Piece:
    if piece.kind == "text":
        text = without_gutenberg(piece.text)
        if text != piece.text and text.strip():
            tally.counts["gutenberg"] += 1
            return replace(piece, text=text)
    # Tokenisers of today write a space at the front of a word: "A: " + "yes" never occurs in what a model has read.
    prompt = piece.prompt.rstrip(" ")
    if piece.kind == "completion" and prompt != piece.prompt:
        tally.counts["moved"] += 1
        space = "" if piece.text[0].isspace() else " "
        return replace(piece, prompt=prompt, text=space + piece.text)
    return piece


def _check_speaker(speaker: str | None, tally: _Tally) -> None:
    if speaker is None:
        return
    if not tally.chat_logs:
        raise DataError("there is no SillyTavern chat to choose a speaker in", where="--speaker", got=speaker)
    if speaker.casefold() not in {name.casefold() for name in tally.names}:
        known = ", ".join(sorted(name for name in tally.names if name))
        raise DataError(
            "nobody of that name speaks in the chats", where="--speaker", expected=f"one of {known}", got=speaker
        )


def _told(tally: _Tally) -> list[str]:
    counts = tally.counts
    lines = [
        (counts["repaired"], "damaged characters (such as Ã© for é) were repaired, pieces: {}"),
        (counts["gutenberg"], "Project Gutenberg's header and licence were removed, texts: {}"),
        (counts["moved"], "a space moved from a prompt's end to its completion (leave it off when you generate): {}"),
        (counts["hidden"], "hidden chat messages (is_system) left out: {}"),
        (counts["memory"], "KoboldAI stories whose memory and author's note are not learned: {}"),
        (counts["empty"], "empty pieces left out: {}"),
        (counts["unlabelled"], "pieces left out, as nothing in them is to be learned: {}"),
    ]
    notes = [line.format(count) for count, line in lines if count]
    if tally.unused_keys:
        notes.append(f"keys of the records that are not used: {_some(tally.unused_keys)}")
    return notes


def _some(keys: Mapping[str, Any] | set[str]) -> str:
    names = sorted(str(key)[:40] for key in keys)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"
