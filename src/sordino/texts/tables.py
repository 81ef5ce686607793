"""Tables with a header, as spreadsheets write them: with commas, semicolons or tabs, `sep=` lines, empty last columns."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from sordino.errors import DataError
from sordino.texts.files import MAX_BYTES, read_lines
from sordino.texts.tally import shortened, some

# Excel's first line where a table does not use the country's separator.
_DECLARED = re.compile(r'"?sep=([^\w\s"]|\t)"?\s*', re.IGNORECASE)


def table_rows(path: Path, counts: Counter[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line that the row ends on, its fields by lower-case column). Raises DataError."""
    lines = (line for _, line in read_lines(path, counts))
    above, header = _header(lines)
    declared = _DECLARED.fullmatch(header)
    if declared:
        counts["separator"] += 1
        more, header = _header(lines)
        above += more + 1
    separator = declared[1] if declared else "\t" if path.suffix.lower() == ".tsv" else _separator(header)
    previous = csv.field_size_limit(MAX_BYTES)  # its default of 131,072 characters is less than a chapter
    rows = None
    try:
        # Line ends inside quotes belong to the text, so lines keep theirs.
        rows = csv.reader(chain([header], lines), delimiter=separator, strict=True)
        keys = _columns(next(rows, []), path)
        for row in rows:
            if row:
                number = rows.line_num + above
                yield number, dict(zip(keys, _fields(row, keys, f"{path}:{number}", counts), strict=True))
    except csv.Error as error:
        at = above + (rows.line_num if rows else 1)
        raise DataError(f"this is not CSV ({error})", where=f"{path}:{at}") from None
    finally:
        csv.field_size_limit(previous)


def _header(lines: Iterator[str]) -> tuple[int, str]:
    """(how many blank lines are above it, the first line that is not blank)."""
    for above, line in enumerate(lines):
        if line.strip():
            return above, line
    return 0, ""


def _separator(header: str) -> str:
    """Spreadsheets of some countries write semicolons."""
    return next((mark for mark in ";\t" if mark in header and "," not in header), ",")


def _columns(header: list[str], path: Path) -> list[str]:
    keys = [key.strip().lower() for key in header]
    while keys and not keys[-1]:
        keys.pop()
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise DataError(
            "two columns have the same name", where=path, got=some(twice), do="rename or remove one of them"
        )
    return keys


def _fields(row: list[str], keys: list[str], where: str, counts: Counter[str]) -> list[str]:
    fields = list(row)
    while len(fields) > len(keys) and not fields[-1].strip():
        fields.pop()
    counts["fields"] += len(fields) < len(row)
    if len(fields) != len(keys):
        raise DataError(
            "a row does not fit its header",
            where=where,
            expected=f"{len(keys)} fields ({', '.join(map(shortened, keys))})",
            got=len(fields),
        )
    return fields
