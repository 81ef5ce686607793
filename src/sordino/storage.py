"""Writes that a kill cannot tear: after one, the old file or the new file is there, whole.

The new content goes to a temporary name in the same folder, is flushed to the disk, and takes the place of the old in one step
(os.replace). A folder takes two renames: `atomic_folder` says how it stays safe between them. What a killed process leaves is a
`.sordino-*.tmp`, which the next write into the folder removes: a writer holds a lock on it, which ends with the process. Where
the system or the drive has no such locks, it is removed after a day.
"""

from __future__ import annotations

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

if sys.platform != "win32":
    import fcntl

from sordino.errors import BadInput, StorageError

_TEMPORARY = re.compile(r"\.sordino-[0-9a-f]{16}\.tmp")
_ABANDONED_AFTER_SECONDS = 24 * 3600
REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM})
# Libraries in Rust (safetensors, tokenizers) tell the number in the text of an error of their own.
_RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def atomic_file(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; when the body ends well, it becomes `path`.

    The temporary file is there, empty. If the body raises, it is removed and `path` is as it was. A symbolic link is followed,
    and the mode of an existing file is kept. replace: what has the name by then; else BadInput says that it is taken. Raises
    BadInput where `path` cannot be a file (a folder, or in a folder that is not there), StorageError where the disk refuses
    (full, read-only, no permission, held open on Windows). What the body raises else stays what it is.
    """
    target = _target(path)
    if target.exists() and not target.is_file():
        got = "a folder" if target.is_dir() else "a device or a pipe"
        raise BadInput("cannot write a file here", where=path, expected="a file name", got=got)
    with _temporary(path, target.parent, folder=False) as temporary:
        with storage_errors(path, body=temporary):
            yield temporary
        with storage_errors(path):
            _flush_file(temporary)
            _keep_mode(target, temporary)
            if replace:
                os.replace(temporary, target)
            elif not took_free_name(temporary, target):
                do = "replace it with --force, or choose another name"
                raise BadInput("there is a file of this name", where=path, do=do)
    _flush_folder(target.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically. Raises as `atomic_file` does."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def make_folder(path: Path, *, parents: bool = True) -> None:
    """Make a folder. parents: and those above it; without, none is made where a drive is not mounted. Raises StorageError."""
    try:
        path.mkdir(parents=parents, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the folder could not be made ({error.strerror})", where=path) from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `path` to fill; when the body ends well, it becomes `path`.

    An existing folder is replaced, but only if it holds nothing that the new one does not write again: a slip must not delete
    documents (BadInput). It is first renamed to `NAME.old-*` beside `path`: a process that is killed before the new one has the
    name leaves the old folder there, and the next write to `path` puts it back. Otherwise raises as `atomic_file` does.
    """
    target = _target(path)
    if target.exists() and not target.is_dir():
        raise BadInput("cannot write a folder here", where=path, expected="a folder name", got="a file")
    _put_back(target)
    with _temporary(path, target.parent, folder=True) as temporary:
        with storage_errors(path, body=temporary):
            yield temporary
        _refuse_losses(path, target, temporary)
        with storage_errors(path):
            # Some libraries write with 0600, which hides a file from the other users of a shared folder.
            readable = temporary.stat().st_mode & 0o666
            for file in map(temporary.joinpath, _files_in(temporary)):
                _flush_file(file)
                file.chmod(file.stat().st_mode | readable)
            _flush_folder(temporary)
            _take_place(temporary, target)
    _flush_folder(target.parent)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """An empty temporary folder in `parent`, removed afterwards, or after a kill by the next write there. Raises StorageError."""
    with _temporary(parent, parent, folder=True) as temporary:
        yield temporary


@contextmanager
def _temporary(path: Path, parent: Path, *, folder: bool) -> Iterator[Path]:
    """A new file or folder in `parent`, locked; what is left of it at the end is removed."""
    with storage_errors(path):
        _sweep(parent)
        temporary, lock = _made(parent, folder=folder)
    try:
        yield temporary
    finally:
        _remove(temporary)
        if lock is not None:
            os.close(lock)


def _made(parent: Path, *, folder: bool) -> tuple[Path, int | None]:
    """A new temporary file or folder, and the descriptor of its lock, as `_locked`."""
    while True:
        temporary = parent / f".sordino-{secrets.token_hex(8)}.tmp"
        if folder:
            temporary.mkdir()
        else:
            # Not mkstemp: its mode 0600 would hide the file from the other users of a shared folder.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            lock = _locked(temporary)
        except (FileNotFoundError, BlockingIOError):
            # Another process sweeps it between the two calls.
            continue
        if lock is None or temporary.exists():
            return temporary, lock
        os.close(lock)


def _locked(path: Path) -> int | None:
    """A descriptor with a lock on `path`; None where the system or the drive has no locks. BlockingIOError where it is taken."""
    if sys.platform == "win32":
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


@contextmanager
def storage_errors(path: Path, *, body: Path | None = None) -> Iterator[None]:
    """What the disk refuses as StorageError. body: the folder or file that somebody else's code writes to inside: what other files
    and networks refuse it stays what it is."""
    try:
        yield
    except Exception as error:
        rust = _RUST_OS_ERROR.search(str(error))
        number = error.errno if isinstance(error, OSError) else int(rust[1]) if rust else None
        named = getattr(error, "filename", None)
        if body is None:
            ours = isinstance(error, OSError)
        elif isinstance(named, (str, bytes, os.PathLike)):
            ours = Path(os.fsdecode(named)).is_relative_to(body)
        else:
            ours = number in REFUSALS
        if not ours:
            raise
        state = "the old one is intact" if path.exists() else "nothing was written"
        why = os.strerror(number) if number else type(error).__name__
        do = f"{state}; make room, close programs that hold it open, or write to another folder"
        raise StorageError(f"could not be written ({why})", where=path, do=do) from error


def _target(path: Path) -> Path:
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise BadInput("the folder to write to does not exist", where=path.parent, do="make it, or choose another")
    return target


def _sweep(folder: Path) -> None:
    """Remove what killed processes left in `folder`."""
    # A courtesy: a folder that cannot be listed, or a file that another process sweeps first, is no reason to fail.
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if not _TEMPORARY.fullmatch(entry.name) or entry.is_symlink():
                continue
            # Also where its writer holds the lock.
            with suppress(OSError):
                lock = _locked(Path(entry.path))
                if lock is not None or time.time() - entry.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                    _remove(Path(entry.path))
                if lock is not None:
                    os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _keep_mode(target: Path, temporary: Path) -> None:
    # Some mounted drives have no modes to set; the write itself is what matters.
    with suppress(OSError):
        shutil.copymode(target, temporary)


def took_free_name(file: Path, target: Path) -> bool:
    """Call a file `target` in one step, unless something is called so: False. It may have its old name too. Raises OSError."""
    try:
        if sys.platform == "win32":
            os.rename(file, target)
        else:
            os.link(file, target)
    except FileExistsError:
        return False
    except OSError:
        # Drives without links: two steps.
        if os.path.lexists(target):
            return False
        os.replace(file, target)
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


def _take_place(new: Path, target: Path) -> None:
    """`new` becomes `target`; what was there, if anything, is removed."""
    if not target.exists():
        os.rename(new, target)
        return
    # Not a temporary name: it is the only copy until the second rename.
    old = target.with_name(f"{target.name}.old-{secrets.token_hex(8)}")
    os.rename(target, old)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _put_back(target: Path) -> None:
    """What a process that was killed in `_take_place` left: the old folder gets its name back where nothing has it."""
    left = re.compile(re.escape(target.name) + r"\.old-[0-9a-f]{16}")
    with suppress(OSError):
        for old in [entry for entry in target.parent.iterdir() if left.fullmatch(entry.name) and entry.is_dir()]:
            if not target.exists():
                os.rename(old, target)
            elif not _files_in(old) - _files_in(target):
                shutil.rmtree(old, ignore_errors=True)
