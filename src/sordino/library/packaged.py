"""The soft prompts that come with the package, and how they get into a library."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from sordino.library.files import listed
from sordino.storage import make_folder, write_bytes

_SEEDED = ".sordino-seeded"


def seed(folder: Path) -> list[Path]:
    """Put the packaged soft prompts into an empty library, once: what the user removes does not come back.

    Goes on where it was interrupted. Returns what was written: nothing where the library holds anything else or was seeded before.
    Raises StorageError.
    """
    prompts, mark = packaged(), folder / _SEEDED
    try:
        # Names, while the files are being put in place; empty when they are.
        if not mark.read_bytes():
            return []
    except FileNotFoundError:
        if listed(folder):
            return []
    except OSError:
        return []
    if not prompts:
        return []
    make_folder(folder)
    write_bytes(mark, "\n".join(item.name for item in prompts).encode())
    written = _write_missing(folder, prompts)
    write_bytes(mark, b"")
    return written


def write_packaged(folder: Path) -> list[str]:
    """Write the packaged soft prompts into a folder, except those whose names are taken. Returns the names. Raises StorageError."""
    make_folder(folder)
    return [path.stem for path in _write_missing(folder, packaged())]


def _write_missing(folder: Path, prompts: Sequence[Traversable]) -> list[Path]:
    missing = [item for item in prompts if not os.path.lexists(folder / item.name)]
    for item in missing:
        write_bytes(folder / item.name, item.read_bytes())
    return [folder / item.name for item in missing]


def packaged() -> list[Traversable]:
    folder = resources.files("sordino").joinpath("data", "prompts")
    return [item for item in folder.iterdir() if item.name.endswith(".zip")] if folder.is_dir() else []
