"""Files of several kinds to pieces: texts, web pages, records (JSONL, JSON, CSV), chat logs, KoboldAI stories.

What was left out, repaired, read as another program's format or not used is counted and reported. A record of unknown shape is an
error with its file and line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from sordino.errors import DataError
from sordino.texts.chats import (
    Numbered,
    chat_log_pieces,
    discord_piece,
    discord_rows,
    is_chat_log,
    is_discord,
    is_story,
    is_webui_history,
    story_piece,
    webui_piece,
)  # fmt: skip
from sordino.texts.files import (
    WHOLE,
    TextFile,
    cleaned,
    find_files,
    read_lines,
    read_parts,
    read_text,
    without_gutenberg,
)
from sordino.texts.markers import begins_as_chat, documents, markers_left
from sordino.texts.pieces import Piece, chat
from sordino.texts.records import SHAPES, Record, is_record, key_of_records, record_piece
from sordino.texts.sampling import SampledPieces, SampleSize
from sordino.texts.tables import table_rows
from sordino.texts.tally import Tally, shortened, some
from sordino.texts.web_pages import is_web_page, page_text

_FIRST_OF_LINES = re.compile(r"\s*+(\{[^\r\n]*+)[\r\n]\s*+\S")


@dataclass(frozen=True)
class Reading:
    """The pieces in the order of their files, and notes, a line each, on what was left out, repaired or converted."""

    pieces: tuple[Piece, ...]
    notes: tuple[str, ...]


def read_pieces(
    paths: Sequence[Path],
    *,
    speaker: str | None = None,
    ends: Collection[str] = (),
    sample: SampleSize | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Reading:
    """All texts of files and folders, or a sample of them.

    speaker: whose turns of chat logs are learned; by default everybody's but the user's. ends: the base model's end markers, which
    end documents as the common markers do. progress: called with the bytes that were read, about, and all. Raises DataError for a
    missing or unreadable file, another encoding, a record of unknown shape, an unknown speaker, or no text; MissingExtra for HTML.
    """
    files, notes = find_files(paths)
    tally, drawn = Tally(), SampledPieces(sample)
    sizes = [_size(file) for file in files]
    total, shown = sum(sizes), 0
    for number, file in enumerate(files):
        before, begun = sum(sizes[:number]), drawn.characters
        for where, raw in _raw_pieces(file, speaker, tally):
            for document in documents(raw, ends, tally):
                piece = _clean_piece(document, where, tally)
                if piece is not None:
                    drawn.add(piece)
            done = before + min(sizes[number], drawn.characters - begun)
            if done >= shown + total // 200:
                shown = done
                progress(done, total)
    _check_speaker(speaker, tally)
    pieces = drawn.pieces
    if not pieces:
        raise DataError(
            "there is no text in it", where=", ".join(map(str, paths)), got="; ".join(tally.lines()) or "nothing"
        )
    return Reading(pieces, (*notes, *tally.lines(), *filter(None, [drawn.note])))


def _size(file: TextFile) -> int:
    """In bytes; 0 where it cannot be had: reading it gives the better error."""
    try:
        return file.path.stat().st_size
    except OSError:
        return 0


def _raw_pieces(file: TextFile, speaker: str | None, tally: Tally) -> Iterator[tuple[str, Piece]]:
    """(where, piece) as written in one file, before cleaning."""
    suffix = file.path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        yield from _from_json_lines(file, speaker, tally)
    elif suffix in (".csv", ".tsv"):
        yield from _from_records(file, table_rows(file.path, tally.counts), speaker, tally)
    elif suffix == ".json":
        yield from _from_json(file, speaker, tally)
    else:
        yield from ((str(file.path), piece) for piece in _text_pieces(file, tally))


def _text_pieces(file: TextFile, tally: Tally) -> Iterator[Piece]:
    """A text, or of a large one its parts. Web pages and chats have no place to cut them, and are read whole."""
    if _size(file) > WHOLE:
        first = next(read_parts(file.path), "")
        if not is_web_page(first, file.path) and not begins_as_chat(first):
            tally.counts["parts"] += 1
            for number, part in enumerate(read_parts(file.path), start=1):
                yield Piece(f"{file.name}, part {number}", "text", part)
            return
    text = read_text(file.path)
    if is_web_page(text, file.path):
        tally.counts["html"] += 1
        text = page_text(text, file.path)
    yield Piece(file.name, "text", text)


def _from_records(
    file: TextFile, records: Iterator[Numbered], speaker: str | None, tally: Tally
) -> Iterator[tuple[str, Piece]]:
    first = next(records, None)
    if first is None:
        tally.counts["empty"] += 1
        return
    records = chain([first], records)
    if is_chat_log(first[1]):
        for piece in chat_log_pieces(records, file.name, file.path, speaker, tally):
            yield str(file.path), piece
    elif is_discord(first[1]):
        yield str(file.path), discord_piece((record for _, record in records), file.name, speaker, tally)
    else:
        for number, record in records:
            where = f"{file.path}:{number}"
            try:
                yield where, record_piece(record, f"{file.name}:{number}", where, tally)
            except RecursionError:
                raise DataError("this record is nested too deeply", where=where) from None


def _from_json(file: TextFile, speaker: str | None, tally: Tally) -> Iterator[tuple[str, Piece]]:
    """One JSON document: a story or chat of a known program, a record, or an array of records, numbered from 1; or JSONL, which
    many programs call .json.
    """
    text = read_text(file.path)
    if _is_json_lines(text):
        tally.counts["lines"] += 1
        yield from _from_records(file, _json_lines(file.path, tally), speaker, tally)
        return
    document = _parsed(text, file.path, "save records as JSONL, one object per line")
    channel = discord_rows(document)
    if isinstance(document, list):
        numbered = ((i, _object(item, f"{file.path}:{i}")) for i, item in enumerate(document, start=1))
        yield from _from_records(file, numbered, speaker, tally)
    elif channel is not None:
        yield str(file.path), discord_piece(channel, file.name, speaker, tally)
    elif isinstance(document, dict) and is_story(document):
        yield str(file.path), story_piece(document, file.name, file.path, tally)
    elif isinstance(document, dict) and is_webui_history(document):
        yield str(file.path), webui_piece(document, file.name, file.path, tally)
    elif is_record(document):
        yield from _from_records(file, iter([(1, document)]), speaker, tally)
    elif key := key_of_records(document):
        tally.understood[f"JSON objects whose `{shortened(key)}` is read as the records"] += 1
        tally.unused_keys |= document.keys() - {key}
        yield from _from_records(file, enumerate(document[key], start=1), speaker, tally)
    else:
        raise DataError(
            "this JSON file has an unknown shape",
            where=file.path,
            expected="a KoboldAI story (`prompt` and `actions`), a text-generation-webui history or an array of records",
            got=f"the keys {some(document)}" if isinstance(document, dict) else type(document).__name__,
        )


def _is_json_lines(text: str) -> bool:
    """Whether the first line is a whole object and other lines follow."""
    first = _FIRST_OF_LINES.match(text)
    try:
        return first is not None and isinstance(json.loads(first[1]), dict)
    except (ValueError, RecursionError):
        return False


def _from_json_lines(file: TextFile, speaker: str | None, tally: Tally) -> Iterator[tuple[str, Piece]]:
    """JSONL, or a JSON array that is called .jsonl."""
    first = next((line.strip() for _, line in read_lines(file.path) if line.strip()), "")
    if first.startswith("[") and not first.endswith("}"):
        yield from _from_json(file, speaker, tally)
    else:
        yield from _from_records(file, _json_lines(file.path, tally), speaker, tally)


def _json_lines(path: Path, tally: Tally) -> Iterator[Numbered]:
    for number, line in read_lines(path, tally.counts):
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


def _clean_piece(raw: Piece, where: str, tally: Tally) -> Piece | None:
    """The piece with repaired characters; None, and counted, if it holds nothing to learn."""
    repaired = False

    def clean(text: str) -> str:
        nonlocal repaired
        text, changed = cleaned(text, where)
        repaired |= changed
        return text

    if raw.kind == "chat":
        piece = chat(raw.name, ({**turn, "content": clean(turn["content"])} for turn in raw.messages))
    else:
        piece = replace(raw, text=clean(raw.text), prompt=clean(raw.prompt))
    if not piece.text.strip():
        tally.counts["unlabelled" if piece.words.strip() else "empty"] += 1
        return None
    tally.counts["repaired"] += repaired
    tally.markers |= markers_left(piece.text)
    return _trimmed(piece, tally)


def _trimmed(piece: Piece, tally: Tally) -> Piece:
    if piece.kind == "text":
        text = without_gutenberg(piece.text)
        if text != piece.text and text.strip():
            tally.counts["gutenberg"] += 1
            return replace(piece, text=text)
    # Tokenizers join a space with the word after it, so a model has never read "A: " followed by "yes".
    prompt = piece.prompt.rstrip(" ")
    if piece.kind == "completion" and prompt != piece.prompt:
        tally.counts["moved"] += 1
        space = "" if piece.text[0].isspace() else " "
        return replace(piece, prompt=prompt, text=space + piece.text)
    return piece


def _check_speaker(speaker: str | None, tally: Tally) -> None:
    if speaker is None:
        return
    if not tally.chat_logs:
        raise DataError(
            "there is no SillyTavern chat or Discord channel to choose a speaker in", where="--speaker", got=speaker
        )
    if speaker.casefold() not in {name.casefold() for name in tally.names}:
        known = some(name for name in tally.names if name)
        raise DataError("nobody in the chats has this name", where="--speaker", expected=f"one of {known}", got=speaker)
