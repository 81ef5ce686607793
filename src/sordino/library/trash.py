"""The hidden folder of a library's folder, where removed files go, and from where they can be put back."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from sordino.errors import NameTaken, NotInLibrary, StorageError
from sordino.library.files import listed, move_file
from sordino.library.names import without_ending
from sordino.storage import make_folder, took_free_name

_TRASH = ".trash"
# What `discard` puts into a name that the trash has already.
_MARK = re.compile(r"-[0-9a-f]{8}(?=(\.mix|\.kv)?\.zip$|$)", re.IGNORECASE)


def discard(item: Path) -> Path:
    """Move a file or a folder into the trash of its folder, never over another. Returns where it is now.

    Raises NotInLibrary where it is gone, StorageError where the disk refuses: it is then still there.
    """
    trash = item.parent / _TRASH
    make_folder(trash, parents=False)
    stem = without_ending(item.name)
    place = trash / item.name
    try:
        while not move_file(item, place):
            place = trash / f"{stem}-{secrets.token_hex(4)}{item.name.removeprefix(stem)}"
    except OSError as error:
        if not os.path.lexists(item):
            raise NotInLibrary("the file is gone: another program removed it", where=stem) from error
        raise StorageError(
            f"could not be removed ({error.strerror})",
            where=item,
            do="it is still there; close programs that hold it open",
        ) from error
    return place


def put_back(folders: Sequence[Path], shown: str) -> Path:
    """Move what the trash of one of these folders has as `shown_name` to where it was. Returns where it is now.

    Raises NotInLibrary, NameTaken, StorageError: it is then still in the trash.
    """
    places = [Path(item.path) for folder in folders for item in listed(folder / _TRASH)]
    place = next((place for place in places if shown_name(place) == shown), None)
    if place is None:
        raise NotInLibrary("the trash has no file of this name", where=shown)
    first = _MARK.sub("", place.name)
    # A name may end like that by itself: `discard` adds it only where the trash has the name.
    name = first if os.path.lexists(place.with_name(first)) else place.name
    target = place.parent.parent / name
    try:
        moved = move_file(place, target) if place.is_dir() else _file_put_back(place, target)
    except OSError as error:
        raise StorageError(f"could not be put back ({error.strerror})", where=target) from error
    if not moved:
        raise NameTaken("another file has this name now", where=name, do="remove or rename that one first")
    return target


def _file_put_back(place: Path, target: Path) -> bool:
    """Not as `move_file`: a kill would leave an empty file in the library. Nobody else writes in the trash."""
    # The same file: an earlier one was killed between the two steps.
    if not took_free_name(place, target) and not os.path.samefile(place, target):
        return False
    place.unlink(missing_ok=True)
    return True


def shown_name(path: Path) -> str:
    """A file's name, for people and clients: bytes that are not UTF-8, from old archives, are escaped."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")
