"""Files of texts to continue: JSON lines, or a text a line."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.errors import BadInput
from sordino.settings import LARGEST_SEED

_KEYS = ("text", "soft_prompt", "seed")
_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class BatchLine:
    """soft_prompt: a name or path, "" for none, None where the line does not say. seed likewise. where: file and line."""

    text: str
    soft_prompt: str | None
    seed: int | None
    where: str

    def name(self, default: str) -> str:
        return default if self.soft_prompt is None else self.soft_prompt


def read_text(path: Path | str) -> str:
    """A UTF-8 file, or standard input for "-". Raises BadInput."""
    name = "standard input" if str(path) == "-" else str(path)
    try:
        if str(path) == "-":
            if sys.stdin is None:
                raise BadInput("it is closed", where=name)
            data = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise BadInput("too large", where=name, expected=f"at most {_MOST_BYTES >> 20} MiB")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise BadInput("cannot be read", where=name, got=error.strerror or type(error).__name__) from None
    except UnicodeDecodeError as error:
        raise BadInput(
            "not UTF-8 text", where=name, got=f"byte 0x{error.object[error.start]:02x} at {error.start}"
        ) from None


def read_batch(path: Path) -> list[BatchLine]:
    """The lines of a batch: JSON objects if the first one that is not empty begins with "{", else texts as they are.

    Raises BadInput with the line's number: not JSON, a key that does not exist, a value of another type, nothing at all.
    """
    name = "standard input" if str(path) == "-" else str(path)
    # Not splitlines(): a text in JSON may hold U+2028 and its like.
    every = enumerate(read_text(path).split("\n"), start=1)
    lines = [(number, line.removesuffix("\r")) for number, line in every if line.strip()]
    if not lines:
        raise BadInput("there is no text in it", where=name)
    if lines[0][1].lstrip().startswith("{"):
        return [_json_line(line, f"{name}:{number}") for number, line in lines]
    return [BatchLine(line, None, None, f"{name}:{number}") for number, line in lines]


def _json_line(line: str, where: str) -> BatchLine:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInput("this line is not JSON", where=where, got=str(error)) from None
    if not isinstance(record, dict):
        raise BadInput("this line is not a JSON object", where=where, got=type(record).__name__)
    unknown = sorted(set(record) - set(_KEYS))
    if unknown:
        raise BadInput("unknown key", where=where, expected=", ".join(_KEYS), got=", ".join(unknown))
    text, prompt, seed = record.get("text"), record.get("soft_prompt"), record.get("seed")
    if not isinstance(text, str):
        raise BadInput("`text` is of another type", where=where, expected="a string", got=_kind_of(text))
    if "soft_prompt" in record and not isinstance(prompt, str | None):
        raise BadInput(
            "`soft_prompt` is of another type", where=where, expected="a string or null", got=_kind_of(prompt)
        )
    if "seed" in record and (type(seed) is not int or not 0 <= seed <= LARGEST_SEED):
        raise BadInput("`seed` is out of range", where=where, expected="a whole number, 0 or more", got=seed)
    return BatchLine(text, (prompt or "") if "soft_prompt" in record else None, seed, where)


def _kind_of(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
