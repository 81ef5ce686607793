"""A folder of soft prompts as a web site that any host of files can serve: a page, its data, a feed, and the files.

Every file is read with the safe readers and written anew as the native file of its kind, so equal prompts have equal hashes in
every gallery. The page asks nothing of elsewhere. It is complete without JavaScript, which searches and filters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

from jinja2 import Environment, StrictUndefined

from sordino import formats
from sordino.errors import BadInput
from sordino.library.entry import Entry
from sordino.library.gallery.describing import described
from sordino.library.gallery.index import FILE, MAX_FILE, GalleryEntry, GalleryIndex, read_index, write_index
from sordino.library.gallery.web import Reach, checked_url
from sordino.library.library import Library
from sordino.library.names import ENDINGS, safe_name
from sordino.models.cache import sha256_of
from sordino.prompts.fit import plain_name
from sordino.prompts.soft_prompt import RATINGS
from sordino.storage import make_folder, scratch_folder, storage_errors, write_bytes

PAGE, FEED, _FOLDER = "index.html", "feed.xml", "files"
_STATIC = ("gallery.css", "gallery.js")
# XML has no character for these.
_NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class BuiltSite:
    """index: what it offers. left_out: a line for each file that could not be read. notes: on the site as a whole."""

    index: GalleryIndex
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def build_site(folder: Path, site: Path, *, title: str = "", url: str = "") -> BuiltSite:
    """Write the gallery of the soft prompts in `folder` to `site`, or bring one there up to date. url: where it will be.

    Files that are no part of a gallery stay. Data is written after the files and the page before it, and what it no longer lists
    is removed last: after a kill, all that is listed is there. Raises BadInput, StorageError.
    """
    library = Library([folder])
    if library.missing_folders():
        raise BadInput("no such folder", where=folder)
    if url:
        checked_url(url, Reach.MACHINE)
        url = url if url.endswith("/") else f"{url}/"
    before = _listed(site)
    new = [made for made in (site / _FOLDER, site) if not made.exists()]
    make_folder(site / _FOLDER)
    entries, left_out = _write_files(library, site)
    if not entries:
        for made in new:
            made.rmdir()
        raise BadInput("there is no soft prompt to offer", where=folder, got="; ".join(left_out[:3]))
    index = GalleryIndex(title or folder.absolute().name, tuple(entries))
    data = write_index(index)
    for name, text in _pages(index, url):
        write_bytes(site / name, text.encode())
    for name in _STATIC:
        write_bytes(site / name, _data(name).encode())
    write_bytes(site / FILE, data)
    for gone in before - {entry.url for entry in entries}:
        with storage_errors(site):
            (site / gone).unlink(missing_ok=True)
    notes = (
        () if url else ("the links in feed.xml are relative, which some readers do not follow: --url says where it is",)
    )
    return BuiltSite(index, tuple(left_out), notes)


def _listed(site: Path) -> set[str]:
    """The files of the gallery that is there. Raises BadInput where something else is."""
    try:
        index = read_index((site / FILE).read_bytes(), str(site / FILE))
    except FileNotFoundError:
        if (site / PAGE).exists():
            raise BadInput(
                "there is another page here", where=site / PAGE, do="choose another folder, or remove that page"
            ) from None
        return set()
    # Of ours only: an index of another maker may name files anywhere.
    own = {f"{_FOLDER}/{quote(entry.name + ENDINGS[entry.kind])}" for entry in index.entries}
    return {entry.url for entry in index.entries if entry.url in own}


def _write_files(library: Library, site: Path) -> tuple[list[GalleryEntry], list[str]]:
    entries: list[GalleryEntry] = []
    left_out: list[str] = []
    taken = set[str]()
    with scratch_folder(site) as scratch:
        for entry in library.scan():
            name = safe_name(entry.name)
            try:
                if entry.error:
                    left_out.append(f"{entry.path.name}: {entry.error}")
                elif name.casefold() in taken:
                    left_out.append(f"{entry.path.name}: another file has the name {name}")
                else:
                    entries.append(_write_file(library, entry, name, site, scratch))
                    taken.add(name.casefold())
            except BadInput as error:
                left_out.append(error.message)
    return entries, left_out


def _write_file(library: Library, entry: Entry, name: str, site: Path, scratch: Path) -> GalleryEntry:
    prompt = formats.read_any(library.open(entry))
    file_name = name + ENDINGS[prompt.kind]
    made = scratch / file_name
    formats.write_any(prompt, made)
    size, sha256 = made.stat().st_size, sha256_of(made)
    if size > MAX_FILE:
        raise BadInput("too large for a gallery", where=entry.path, expected=f"at most {MAX_FILE} bytes", got=size)
    place = site / _FOLDER / file_name
    with storage_errors(place):
        made.replace(place)
    return described(formats.peek(place), name=name, url=f"{_FOLDER}/{quote(file_name)}", size=size, sha256=sha256)


# The pages ---------------------------------------------------------------------------------------------------------------


def _pages(index: GalleryIndex, url: str) -> Iterator[tuple[str, str]]:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["date"] = _rfc_date
    environment.filters["address"] = lambda address: urljoin(url, address)
    # Those with something to read come first.
    views = sorted(map(_view, index.entries), key=lambda view: not view["samples"])
    models = {view["model_key"]: view["model"] for view in views}
    known = {"title": index.title, "url": url, "views": views, "known_ratings": RATINGS}
    page = environment.from_string(_data("index.html.j2")).render(
        **known, models=sorted(models.items(), key=lambda pair: pair[1].casefold())
    )
    yield PAGE, page
    yield FEED, _NOT_IN_XML.sub("\ufffd", environment.from_string(_data("feed.xml.j2")).render(**known))


def _view(entry: GalleryEntry) -> dict[str, Any]:
    """What the page shows of an entry. text: what a search looks at."""
    base = entry.base.id or entry.base.family
    model = base or (f"{entry.d_model} wide" if entry.d_model else "unknown")
    words = (entry.title, entry.name, entry.author, model, entry.description, entry.licence, entry.rating, *entry.tags)
    return {
        "entry": entry,
        "title": entry.title or entry.name,
        "model": model,
        "short": model.rpartition("/")[2],
        "model_key": plain_name(model),
        "size": _size(entry.bytes),
        "text": " ".join(words).casefold(),
        "samples": entry.samples[:2],
    }


def _size(count: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{max(1, round(count / 1e3))} kB"


def _rfc_date(created: str) -> str:
    """As RSS writes it; "" for what is no date."""
    try:
        found = datetime.fromisoformat(created)
    except ValueError:
        return ""
    return format_datetime(found if found.tzinfo else found.replace(tzinfo=UTC))


def _data(name: str) -> str:
    return resources.files("sordino").joinpath("data", "gallery", name).read_text(encoding="utf-8")
