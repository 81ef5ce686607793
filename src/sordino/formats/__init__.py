"""Soft prompt files: read every known format by content, write five of them, and mixtures of soft prompts (docs/formats.md).

Nothing here imports torch, and nothing in a file is ever executed.
"""

from sordino.formats.reading import FORMATS, Peek, detect, other_members, peek, read, read_any
from sordino.formats.writing import WRITABLE, file_disclosure, write, write_any, write_mixture

__all__ = [
    "FORMATS",
    "WRITABLE",
    "Peek",
    "detect",
    "file_disclosure",
    "other_members",
    "peek",
    "read",
    "read_any",
    "write",
    "write_any",
    "write_mixture",
]
