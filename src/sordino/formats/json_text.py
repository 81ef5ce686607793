"""JSON from strangers: small, UTF-8, an object, and nothing that JSON does not have."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from sordino.errors import BadInput, SoftPromptFileError
from sordino.formats.sources import Source, read_all

# Parsed, JSON can take thirty times its size in memory.
MAX_JSON = 1 << 19
# Metadata nests five deep; what copies and prints it recurses several frames a level.
_MAX_DEPTH = 64


def read_object(source: Source) -> dict[str, Any]:
    """The JSON object that a source holds. Raises SoftPromptFileError, for one of more than 512 KiB before it is read."""
    return parse(read_all(source, limit=MAX_JSON), source.where)


def parse(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object that `data` spells. Raises SoftPromptFileError."""
    try:
        value = _DECODER.decode(data.decode("utf-8-sig"))
        # \ud800 spells half a character, 1e999 infinity: neither could be written again.
        _ENCODER.encode(value).encode("utf-8")
    except UnicodeError as error:
        raise SoftPromptFileError("not JSON in UTF-8", where=where, got=error) from error
    except RecursionError as error:
        raise SoftPromptFileError("JSON that is nested too deep", where=where) from error
    except ValueError as error:
        raise SoftPromptFileError("not JSON", where=where, got=error) from error
    if not isinstance(value, dict):
        raise SoftPromptFileError("not a JSON object", where=where, expected="{...}", got=type(value).__name__)
    if _is_deep(value):
        raise SoftPromptFileError("JSON that is nested too deep", where=where, expected=f"at most {_MAX_DEPTH} levels")
    return value


def check_room(size: int, holder: str) -> None:
    """Raises BadInput for metadata of `size` bytes that would be too large to be read again out of `holder`."""
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
    # Beyond float64, 1e999 is refused as well; what prints and compares numbers may make floats of them.
    if len(text) > 300:
        raise ValueError("a number that is too large")
    return int(text)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which JSON does not have")


# Made once: a scan of a library reads a thousand of them.
_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_int=_integer)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
