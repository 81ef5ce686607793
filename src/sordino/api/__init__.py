"""Sordino from Python: what `import sordino` offers, on the functions that the command line and the page call.

Nothing here loads PyTorch until something computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Paths = str | Path | Sequence[str | Path]


def as_paths(given: Paths) -> list[Path]:
    return [Path(path) for path in ([given] if isinstance(given, str | Path) else given)]
