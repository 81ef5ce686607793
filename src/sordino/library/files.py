"""What lies in a library's folder. Files come and go while it looks: nothing here raises because of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sordino.library.names import without_ending

# A folder with one of these is a soft prompt itself; any other folder is somebody's and left alone.
_FOLDER_MARKS = frozenset({"meta.json", "tensor.npy", "adapter_config.json"})

Stamp = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True)
class Found:
    """A file or folder that should be a soft prompt.

    label: its file name without `.zip` or `.mix.zip`. path: where the soft prompt is (in a folder, maybe one level down).
    stamp: changes when its content does.
    """

    label: str
    path: Path
    stamp: Stamp


def find(folder: Path) -> Iterator[Found]:
    """What should be soft prompts in `folder`, by name: zips, and folders that are unpacked ones or PEFT prompts."""
    for item in sorted(listed(folder), key=lambda item: (item.name.casefold(), item.name)):
        try:
            if item.name.lower().endswith(".zip") and item.is_file():
                yield Found(without_ending(item.name), Path(item.path), (_stamp(item),))
            elif item.is_dir():
                inner = _prompt_folder(Path(item.path))
                if inner is not None:
                    yield Found(item.name, inner, tuple(sorted(_stamp(member) for member in listed(inner))))
        except OSError:
            # It vanished between the listing and the look.
            continue


def listed(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in `folder`, hidden files left out; nothing where it cannot be listed (gone, unmounted, no folder)."""
    try:
        with os.scandir(folder) as items:
            return [item for item in items if not item.name.startswith(".")]
    except (OSError, ValueError):
        # ValueError: a name with a NUL in it.
        return []


def is_prompt_folder(path: Path) -> bool:
    """Whether the members of a soft prompt lie directly in this folder, as far as their names say."""
    return any(item.name in _FOLDER_MARKS for item in listed(path))


def _prompt_folder(folder: Path) -> Path | None:
    """`folder` if it is a soft prompt, the only folder in it if that is one (unpacking adds a level), else None."""
    items = listed(folder)
    if any(item.name in _FOLDER_MARKS for item in items):
        return folder
    if len(items) == 1 and items[0].is_dir() and is_prompt_folder(Path(items[0].path)):
        return Path(items[0].path)
    return None


def changed_at(stamp: Stamp) -> float:
    """When it was changed last, in seconds since 1970, as far as the system says."""
    return max((changed for *_, changed in stamp), default=0) / 1e9


def _stamp(item: os.DirEntry[str]) -> tuple[str, int, int, int, int]:
    # The inode too: an edit within the clock's grain that keeps the size is another file. And the time of the change, which no
    # program sets: a copy may have its source's size and time before it has its content.
    status = item.stat()
    return item.name, status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns
