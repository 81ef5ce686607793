"""Files of a gallery, fetched into a cache: bounded, checked by their hash, and continued where an earlier process ended.

What has arrived lies in NAME.part in a folder of its hash. It gets its name once it is whole and has that hash, so whatever is
killed, no half file is ever read, and none lies in a library.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from sordino.errors import GalleryError
from sordino.library.gallery.index import MAX_FILE
from sordino.library.gallery.web import Reach, Web
from sordino.models.cache import locked, sha256_of
from sordino.models.hub_answers import Progress
from sordino.storage import make_folder, storage_errors

# A connection that breaks off is opened again this often, if bytes came since.
_MOST_BREAKS = 5


def fetched(
    web: Web, url: str, target: Path, *, most: Reach, size: int = 0, sha256: str = "", progress: Progress | None = None
) -> Path:
    """`target`, downloaded where it is not there yet. size, sha256: what it must have, 0 and "" where nobody said.

    What `progress` raises ends the download, which can go on later; without a hash it starts from its beginning each time. Raises
    GalleryError, StorageError.
    """
    with locked(f"gallery-{hashlib.sha256(str(target).encode()).hexdigest()[:32]}"):
        # Who put it there has checked it.
        if not target.is_file():
            make_folder(target.parent)
            part = target.with_name(f"{target.name}.part")
            _arrive(web, url, part, most, size, sha256, progress)
            with storage_errors(target):
                os.replace(part, target)
    return target


def _arrive(web: Web, url: str, part: Path, most: Reach, size: int, sha256: str, progress: Progress | None) -> None:
    """Fill `part`, from where it ends. Raises GalleryError; what has arrived then stays, unless it is of another file."""
    if not sha256:
        part.unlink(missing_ok=True)
    begun = _size_of(part)
    total = 0
    for _ in range(_MOST_BREAKS):
        before = _size_of(part)
        try:
            total = _append(web, url, part, most, size, progress)
        except GalleryError:
            if not sha256 or _size_of(part) <= before:
                raise
            continue
        if _size_of(part) >= total:
            break
    if (there := _size_of(part)) > total:
        part.unlink()
        raise GalleryError("larger than it may be", where=url, expected=f"{total} bytes")
    if there < total:
        raise GalleryError(
            "the download broke off",
            where=url,
            expected=f"{total} bytes",
            got=there,
            do="try again: it goes on from there",
        )
    if sha256 and (found := sha256_of(part)) != sha256:
        part.unlink()
        # The beginning may be of a file that was replaced meanwhile.
        if not begun:
            raise GalleryError(
                "not the file that was listed",
                where=url,
                expected=f"sha256 {sha256[:16]}...",
                got=f"{found[:16]}...",
                do="it was changed or replaced: add the gallery again to see what it lists now",
            )
        _arrive(web, url, part, most, size, sha256, progress)


def _append(web: Web, url: str, part: Path, most: Reach, size: int, progress: Progress | None) -> int:
    """Fetch what is missing, and at most one piece more. Returns the bytes that it must have. Raises GalleryError."""
    begun = _size_of(part)
    if size and begun == size:
        return size
    if size and begun > size:
        begun = 0
    with web.get(url, most, begin=begun) as answer:
        if answer.status == 416:
            if not begun:
                raise GalleryError("the server does not give it", where=url, got="HTTP 416")
            part.unlink()
            return _append(web, url, part, most, size, progress)
        if size and answer.size not in (None, size):
            raise GalleryError("of another size than was listed", where=url, expected=f"{size} bytes", got=answer.size)
        if answer.start not in (0, begun):
            raise GalleryError("another part of it than was asked for", where=url, expected=begun, got=answer.start)
        total = size or answer.size or 0
        limit = total or MAX_FILE
        if total > MAX_FILE:
            raise GalleryError("too large", where=url, expected=f"at most {MAX_FILE} bytes", got=total)
        with storage_errors(part), part.open("r+b" if part.exists() else "wb") as file:
            file.truncate(answer.start)
            arrived = file.seek(answer.start)
            for chunk in answer.chunks():
                arrived += file.write(chunk)
                if progress is not None:
                    progress(min(arrived, limit), total)
                if arrived > limit:
                    return limit
    return total or arrived


def _size_of(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
