"""Soft prompt files: read every known format by content, write six of them, and mixtures of soft prompts (docs/formats.md).

Nothing here imports torch, and nothing in a file is ever executed.
"""

from sordino.formats.reading import FORMATS, Peek, detect, other_members, peek, peek_zip, read, read_any, read_single
from sordino.formats.writing import (
    KV_WRITABLE,
    WRITABLE,
    file_disclosure,
    format_of_name,
    write,
    write_any,
    write_mixture,
)

__all__ = [
    "FORMATS",
    "KV_WRITABLE",
    "WRITABLE",
    "Peek",
    "detect",
    "file_disclosure",
    "format_of_name",
    "other_members",
    "peek",
    "peek_zip",
    "read",
    "read_any",
    "read_single",
    "write",
    "write_any",
    "write_mixture",
]
