"""JSON from untrusted files: small, UTF-8, an object, and strictly JSON."""

from __future__ import annotations

import json
import math
from sys import intern
from typing import Any, NoReturn

from sordino.errors import BadInput, SoftPromptFileError
from sordino.formats.sources import Readable, read_all

# Parsed JSON can take thirty times its size in memory.
MAX_JSON = 1 << 19
# Metadata has five levels; code that copies and prints it recurses several frames a level.
_MAX_DEPTH = 64


def read_object(source: Readable) -> dict[str, Any]:
    """The JSON object in a source. Raises SoftPromptFileError; for one of more than 512 KiB without reading it."""
    return parse(read_all(source, limit=MAX_JSON), source.where)


def parse(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `data`. Raises SoftPromptFileError."""
    try:
        value = _DECODER.decode(data.decode("utf-8-sig"))
        if b"\\u" in data:
            # \ud800 is half a character, which could not be written again.
            _ENCODER.encode(value).encode("utf-8")
    except UnicodeError as error:
        raise SoftPromptFileError("not JSON in UTF-8", where=where, got=error) from error
    except RecursionError as error:
        raise SoftPromptFileError("JSON that is nested too deep", where=where) from error
    except ValueError as error:
        raise SoftPromptFileError("not JSON", where=where, got=error) from error
    if not isinstance(value, dict):
        raise SoftPromptFileError("not a JSON object", where=where, expected="{...}", got=type(value).__name__)
    # Counting brackets first spares a library of thousands the walk: few files have enough of them to be too deep.
    if data.count(b"{") + data.count(b"[") > _MAX_DEPTH and _is_deep(value):
        raise SoftPromptFileError("JSON that is nested too deep", where=where, expected=f"at most {_MAX_DEPTH} levels")
    return value


def check_room(size: int, holder: str) -> None:
    """Raise BadInput for metadata of `size` bytes that would be too large to be read again from `holder`."""
    if size > MAX_JSON:
        raise BadInput(
            f"too large for {holder}",
            where="metadata",
            expected=f"at most {MAX_JSON} bytes",
            got=size,
            do="leave the samples out",
        )


def _is_deep(value: dict[str, Any]) -> bool:
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            part
            for item in level
            for part in (item.values() if isinstance(item, dict) else item)
            if isinstance(part, (dict, list))
        ]
        if not level:
            return False
    return True


def _integer(text: str) -> int:
    # Beyond the range of float64, like 1e999: code that prints and compares numbers may convert them to floats.
    if len(text) > 300:
        raise ValueError("a number that is too large")
    return int(text)


def _float(text: str) -> float:
    # 1e999 is infinity, which could not be written again.
    if math.isinf(number := float(text)):
        raise ValueError("a number that is too large")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Each file has the same keys: a library of thousands holds each once.
    return {intern(key): value for key, value in pairs}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which JSON does not have")


# Made once: a scan of a library parses a thousand files.
_DECODER = json.JSONDecoder(
    parse_constant=_no_constant, parse_int=_integer, parse_float=_float, object_pairs_hook=_object
)
_ENCODER = json.JSONEncoder(ensure_ascii=False)
