"""A folder as a source of prompt files. Files come and go at any time: nothing here raises because of one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

if sys.platform != "win32":
    import fcntl

from sordino import formats
from sordino.errors import NotInLibrary
from sordino.formats.folders import CONFIG, META, TENSOR
from sordino.library.names import without_ending
from sordino.library.source import Item

# A folder with one of these is a soft prompt itself; any other folder is left alone.
_FOLDER_MARKS = frozenset((META, TENSOR, CONFIG))

Stamp = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True)
class FolderSource:
    """A `Source`: the zips in a folder, and the folders in it that are unpacked soft prompts or PEFT ones."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def list(self) -> Iterator[Item]:
        """By name. A revision is names, sizes, times and inodes."""
        for entry in sorted(listed(self.folder), key=lambda entry: (entry.name.casefold(), entry.name)):
            try:
                if entry.name.lower().endswith(".zip") and entry.is_file():
                    yield _item(without_ending(entry.name), Path(entry.path), (_stamp(entry.name, entry.stat()),))
                elif entry.is_dir():
                    inner = _prompt_folder(Path(entry.path))
                    if inner is not None:
                        yield _item(
                            entry.name, inner, tuple(sorted(_stamp(one.name, one.stat()) for one in listed(inner)))
                        )
            except OSError:
                # It vanished after it was listed.
                continue

    def describe(self, item: Item) -> formats.Peek:
        return formats.peek(item.path)

    def open(self, item: Item) -> Path:
        """A folder keeps no old revisions: what is there now."""
        if not os.path.lexists(item.path):
            raise NotInLibrary("the file is gone", where=item.path)
        return item.path


def listed(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of `folder` without hidden ones; none where it cannot be listed (gone, unmounted, no folder)."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except (OSError, ValueError):
        # ValueError: a name with a NUL in it.
        return []


def is_prompt_folder(path: Path) -> bool:
    """Whether the members of a soft prompt lie directly in this folder, as far as their names say."""
    return any(entry.name in _FOLDER_MARKS for entry in listed(path))


def move_file(source: Path, target: Path) -> bool:
    """Move a file or a folder, never over another: False where the name is taken. Raises OSError."""
    if source.is_dir() and not source.is_symlink():
        try:
            # Replaces no folder that holds anything, and no file.
            os.rename(source, target)
        except OSError:
            if not os.path.lexists(target) or not os.path.lexists(source):
                raise
            return False
        return True
    try:
        # The name is taken in one step, and then filled.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    try:
        os.replace(source, target)
    except OSError:
        target.unlink()
        raise
    return True


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Replace, edit or remove a file of `folder` inside: other processes and threads that want the same wait.

    Where the system or the drive has no such locks, nobody waits. Not to be entered twice: it would wait for itself.
    """
    descriptor = None
    if sys.platform != "win32":
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def identity(path: Path) -> Stamp:
    """What changes when a file is replaced or written to; empty where there is none."""
    with suppress(OSError):
        return (_stamp(path.name, path.stat()),)
    return ()


def _prompt_folder(folder: Path) -> Path | None:
    """`folder` if it is a soft prompt, the only folder in it if that is one (unpacking adds a level), else None."""
    entries = listed(folder)
    if any(entry.name in _FOLDER_MARKS for entry in entries):
        return folder
    if len(entries) == 1 and entries[0].is_dir() and is_prompt_folder(Path(entries[0].path)):
        return Path(entries[0].path)
    return None


def _item(label: str, path: Path, stamp: Stamp) -> Item:
    return Item(label, path, stamp, max((changed for *_, changed in stamp), default=0) / 1e9)


def _stamp(name: str, status: os.stat_result) -> tuple[str, int, int, int, int]:
    # The inode too: an edit within the clock's grain that keeps the size is another file. And the time of the change, which no
    # program sets: a copy may have its source's size and time before it has its content.
    return name, status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns
