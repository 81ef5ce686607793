"""A gallery as a source of prompt files, and the way from a name or an address to a file on this machine."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urldefrag, urlsplit

from sordino import formats
from sordino.errors import GalleryError, NotInLibrary
from sordino.formats.meta_keys import is_hash
from sordino.library.gallery.added import AddedGallery, Galleries
from sordino.library.gallery.download import fetched
from sordino.library.gallery.index import GalleryEntry
from sordino.library.gallery.web import Reach, Web
from sordino.library.installing import Installed, Wanted, install
from sordino.library.library import Library
from sordino.library.names import ENDINGS, kind_of_name, safe_name, without_ending
from sordino.library.origins import Origin
from sordino.library.source import Item
from sordino.models.cache import cache_folder, sha256_of
from sordino.models.hub_answers import Progress


@dataclass(frozen=True, eq=False)
class GallerySource:
    """A `Source`: what a gallery listed when it was last looked at. Files are fetched when they are described or opened."""

    gallery: AddedGallery
    web: Web
    cache: Path
    progress: Progress | None = None

    @property
    def name(self) -> str:
        return self.gallery.name

    def list(self) -> list[Item]:
        """Asks no network. A revision is the file's hash; of a list page, which states none, address and size."""
        return [self.item(entry) for entry in self.gallery.entries]

    def item(self, entry: GalleryEntry) -> Item:
        return Item(entry.name, _place(self.cache, entry), (entry.sha256 or entry.url, entry.bytes))

    def describe(self, item: Item) -> formats.Peek:
        return formats.peek(self.open(item))

    def open(self, item: Item) -> Path:
        entry = next((one for one in self.gallery.entries if self.item(one) == item), None)
        if entry is None:
            raise NotInLibrary("this revision is gone", where=f"{item.label}@{self.name}")
        return fetched(
            self.web,
            entry.url,
            item.path,
            most=self.gallery.reach,
            size=entry.bytes,
            sha256=entry.sha256,
            progress=self.progress,
        )


def files_folder() -> Path:
    """The cache of fetched files."""
    return cache_folder() / "galleries"


def fetched_from(
    gallery: AddedGallery, name: str, *, cache: Path, progress: Progress | None = None
) -> tuple[Path, Origin]:
    """The file of an entry on this machine, and where it came from. Raises NotInLibrary, GalleryError, StorageError."""
    entry = gallery.entry(name)
    with Web() as web:
        source = GallerySource(gallery, web, cache, progress)
        path = source.open(source.item(entry))
    return path, Origin(entry.url, file=f"{name}@{gallery.name}", sha256=sha256_of(path))


def fetched_by(text: str, galleries: Galleries, *, progress: Progress | None = None) -> tuple[Path, Origin] | None:
    """The file that `NAME@GALLERY` or an address stands for, fetched; None for any other text.

    An address may end in #sha256=HASH, which its file must then have. Raises NotInLibrary, GalleryError, StorageError.
    """
    if re.match(r"https?://", text, re.IGNORECASE):
        return _of_address(text, progress)
    name, at, gallery = text.rpartition("@")
    if not at or not name or gallery not in [one.name for one in galleries.all()]:
        return None
    return fetched_from(galleries.named(gallery), name, cache=files_folder(), progress=progress)


def install_fetched(
    library: Library, path: Path, wanted: Wanted, *, warn: Callable[[str], None], origin: Origin
) -> Installed:
    """Copy what was fetched into the library, and take it out of the cache; what is refused stays there for another try.

    Raises as `install`.
    """
    found = install(library, path, wanted, warn=warn, origin=origin)
    with suppress(OSError):
        path.unlink()
        path.parent.rmdir()
    return found


def _of_address(text: str, progress: Progress | None) -> tuple[Path, Origin]:
    url, fragment = urldefrag(text)
    sha256 = fragment.removeprefix("sha256=").lower()
    if fragment and not is_hash(sha256):
        raise GalleryError(
            "nothing is known of this part of an address", where=f"#{fragment[:80]}", expected="#sha256=HASH"
        )
    file_name = unquote(PurePosixPath(urlsplit(url).path).name)
    if not file_name:
        raise GalleryError(
            "the address of a folder, not of a file", where=url, do="a gallery is added: sordino gallery add URL"
        )
    # The name in the library, and on every system a name of a file.
    label = safe_name(without_ending(file_name) if kind_of_name(file_name) else Path(file_name).stem)
    target = files_folder() / (sha256[:32] or f"unlisted-{_digest(url)}") / f"{label}{Path(file_name).suffix}"
    if not sha256:
        target.unlink(missing_ok=True)
    with Web() as web:
        fetched(web, url, target, most=Reach.MACHINE, sha256=sha256, progress=progress)
    return target, Origin(url, file=file_name, sha256=sha256_of(target))


def _place(cache: Path, entry: GalleryEntry) -> Path:
    folder = entry.sha256[:32] if entry.sha256 else f"unlisted-{_digest(f'{entry.url} {entry.bytes}')}"
    return cache / folder / (entry.name + ENDINGS[entry.kind])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
