"""Writes that a kill cannot tear: after one, the old file or the new file is there, whole.

The new content goes to a temporary name in the same folder, is flushed to the disk, and takes the place of the old in
one step (os.replace). What a killed process leaves behind is a `.sordino-*.tmp`, swept by the next write a day later.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sordino.errors import BadInput, StorageError

_TEMPORARY = re.compile(r"\.sordino-[0-9a-f]{16}\.tmp")
_ABANDONED_AFTER_SECONDS = 24 * 3600


@contextmanager
def atomic_file(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; when the body ends well, it becomes `path`.

    The temporary file exists and is empty. If the body raises, it is removed and `path` is as it was. A symbolic link
    is followed, and the mode of an existing file is kept. replace: what has the name by then; else BadInput says that it is
    taken, however late somebody took it. Raises BadInput where `path` cannot be a file (a folder, or
    in a folder that is not there), StorageError where the disk refuses (full, read-only, no permission, held open on
    Windows).
    """
    target = _target(path)
    if target.is_dir():
        raise BadInput("cannot write a file here", where=path, expected="a file name", got="a folder")
    if target.exists() and not target.is_file():
        raise BadInput("cannot write a file here", where=path, expected="a file name", got="a device or a pipe")
    temporary = _temporary_beside(target)
    with _storage_errors(path):
        try:
            # Not mkstemp: its mode 0600 would hide the file from the other users of a shared folder.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield temporary
            _flush_file(temporary)
            _keep_mode(target, temporary)
            if replace:
                os.replace(temporary, target)
            elif not _took_free_name(temporary, target):
                raise BadInput(
                    "there is a file of this name", where=path, do="replace it with --force, or choose another name"
                )
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        _flush_folder(target.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically. Raises as `atomic_file` does."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def make_folder(path: Path) -> None:
    """A folder, and those that it lies in, where they are not there. Raises StorageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the folder cannot be made ({error.strerror})", where=path) from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `path` to fill; when the body ends well, it becomes `path`.

    An existing folder is replaced, but only if it holds nothing that the new one does not write again: a slip of the
    keyboard must not delete somebody's documents (BadInput). The swap is one step on Linux; elsewhere it is two
    renames, and a kill between them leaves the old folder as `NAME.old-*` beside `path`. Otherwise raises as
    `atomic_file` does.
    """
    target = _target(path)
    if target.exists() and not target.is_dir():
        raise BadInput("cannot write a folder here", where=path, expected="a folder name", got="a file")
    temporary = _temporary_beside(target)
    with _storage_errors(path):
        try:
            temporary.mkdir()
            yield temporary
            _refuse_losses(path, target, temporary)
            for file in _files_in(temporary):
                _flush_file(temporary / file)
            _flush_folder(temporary)
            _swap_folders(temporary, target)
        finally:
            # After a swap, this is the old folder.
            shutil.rmtree(temporary, ignore_errors=True)
        _flush_folder(target.parent)


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        state = "the old one is intact" if path.exists() else "nothing was written"
        raise StorageError(
            f"could not be written ({error.strerror or type(error).__name__})",
            where=path,
            do=f"{state}; make room, close programs that hold it open, or write to another folder",
        ) from error


def _target(path: Path) -> Path:
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise BadInput("the folder to write to does not exist", where=path.parent, do="make it, or choose another")
    return target


def _temporary_beside(target: Path) -> Path:
    _sweep(target.parent)
    return target.parent / f".sordino-{secrets.token_hex(8)}.tmp"


def _sweep(folder: Path) -> None:
    """Remove what processes killed more than a day ago left in `folder`."""
    limit = time.time() - _ABANDONED_AFTER_SECONDS
    # A courtesy: a folder that cannot be listed, or a file that another process sweeps first, is no reason to fail.
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if _TEMPORARY.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime < limit:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)


def _keep_mode(target: Path, temporary: Path) -> None:
    # Some mounted drives have no modes to set; the write itself is what matters.
    with suppress(OSError):
        shutil.copymode(target, temporary)


def _took_free_name(temporary: Path, target: Path) -> bool:
    """Call the file `target` in one step, unless something is called so."""
    try:
        if sys.platform == "win32":
            os.rename(temporary, target)
        else:
            os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError:
        # Drives without links: two steps.
        if os.path.lexists(target):
            return False
        os.replace(temporary, target)
    return True


def _flush_file(path: Path) -> None:
    # Windows flushes only a descriptor that is open for writing.
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network drives know no fsync; a full or failing disk says something else.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a power cut. Windows and some drives cannot: the file is whole all the same."""
    if sys.platform == "win32":
        return
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _files_in(folder: Path) -> set[Path]:
    return {file.relative_to(folder) for file in folder.rglob("*") if not file.is_dir()}


def _refuse_losses(path: Path, target: Path, temporary: Path) -> None:
    if not target.is_dir():
        return
    lost = sorted(_files_in(target) - _files_in(temporary))
    if lost:
        raise BadInput(
            "this folder holds other files, which replacing it would delete",
            where=path,
            got=", ".join(map(str, lost[:3])) + (f" and {len(lost) - 3} more" if len(lost) > 3 else ""),
            do="choose another folder",
        )


def _swap_folders(new: Path, target: Path) -> None:
    """`new` becomes `target`; what was there, if anything, gets the name of `new`."""
    if not target.exists():
        os.rename(new, target)
        return
    if _exchange(new, target):
        return
    # Not a temporary name: it is never swept.
    old = target.with_name(f"{target.name}.old-{secrets.token_hex(8)}")
    os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(old, target)
        raise
    os.rename(old, new)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step, with Linux's renameat2. False where the system or the drive has no such call."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_fdcwd, rename_exchange = -100, 2
    return bool(renameat2(at_fdcwd, os.fsencode(first), at_fdcwd, os.fsencode(second), rename_exchange) == 0)
