"""The galleries that were added on this machine: what each listed when it was last looked at, a JSON file each.

What is installed is what was listed then: a gallery that has changed since says so, and is taken over by adding it again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs

from sordino.errors import GalleryError, NotInLibrary, SordinoError
from sordino.formats.json_text import parse
from sordino.library.gallery.index import (
    FORMAT,
    MAX_INDEX,
    VERSION,
    GalleryEntry,
    GalleryIndex,
    entry_from_json,
    entry_to_json,
    read_index,
)
from sordino.library.gallery.list_page import MAX_PAGE, LinkProgress, data_of, entries_at, links
from sordino.library.gallery.web import Reach, Web, joined
from sordino.library.names import did_you_mean, free_name
from sordino.prompts.soft_prompt import today
from sordino.storage import make_folder, write_bytes

_MAX_NAME = 60


@dataclass(frozen=True)
class AddedGallery:
    """A gallery as it was when it was last looked at.

    address: what was added: of a gallery, a list page, or a file with a list. reach: where it was found: none of its files may be
    nearer. entries: their urls are absolute. is_list: a page of links, which states no hashes. notes: on links that lead to no soft
    prompt. error: why its file cannot be read; then it has nothing else.
    """

    name: str
    address: str = ""
    title: str = ""
    reach: Reach = Reach.INTERNET
    is_list: bool = False
    seen: str = ""
    entries: tuple[GalleryEntry, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""

    def entry(self, name: str) -> GalleryEntry:
        """Raises NotInLibrary."""
        found = next((entry for entry in self.entries if entry.name == name), None)
        if found is None:
            names = [entry.name for entry in self.entries]
            raise NotInLibrary(
                "the gallery has no soft prompt of this name",
                where=f"{name}@{self.name}",
                do=did_you_mean(name, names, f"`sordino gallery list {self.name}` shows all names"),
            )
        return found


def found_at(web: Web, address: str, *, most: Reach, progress: LinkProgress | None = None) -> AddedGallery:
    """What is at an address, or in a file with a list: without a name. most: the nearest place that it may lead to.

    Raises GalleryError, SoftPromptFileError.
    """
    is_file = "://" not in address
    if is_file:
        data, url, reach = _of_file(address), "", most
    else:
        data, url, reach = _of_web(web, address, most)
        if data_url := "" if _is_index(data) or len(data) > MAX_PAGE else data_of(_text(data)):
            # The page of a gallery, whose address people copy.
            address = joined(url, data_url)
            data, url, reach = _of_web(web, address, reach)
    address = str(Path(address).expanduser().absolute()) if is_file else address
    if _is_index(data):
        index = read_index(data, url or address)
        return AddedGallery("", address, index.title, reach, seen=today(), entries=_absolute(index, url, address))
    if len(data) > MAX_PAGE:
        raise GalleryError("too large for a list", where=url or address, expected=f"at most {MAX_PAGE} bytes")
    found = links(_text(data), url)
    entries, notes = entries_at(web, found, reach, progress)
    if not entries:
        raise GalleryError(
            "no gallery, and no list with links to soft prompts",
            where=url or address,
            expected="a gallery.json, or links that end in .zip",
            got="; ".join(notes[:3]) or "no such link",
        )
    return AddedGallery("", address, "", reach, is_list=True, seen=today(), entries=tuple(entries), notes=tuple(notes))


class Galleries:
    """Those of a folder. Raises StorageError where it cannot be written."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or platformdirs.user_data_path("sordino", appauthor=False) / "galleries"

    def all(self) -> list[AddedGallery]:
        """By name; one whose file cannot be read has the reason."""
        return [self._read(path) for path in sorted(self.folder.glob("*.json"))] if self.folder.is_dir() else []

    def named(self, name: str) -> AddedGallery:
        """Raises NotInLibrary, GalleryError for one that cannot be read."""
        every = self.all()
        found = next((one for one in every if one.name == name), None)
        if found is None:
            advice = did_you_mean(name, [one.name for one in every], "add it: sordino gallery add URL")
            raise NotInLibrary("no gallery of this name was added", where=name, do=advice)
        if found.error:
            raise GalleryError(
                found.error, where=name, do=f"remove it (`sordino gallery remove {name}`) and add it again"
            )
        return found

    def at(self, address: str) -> AddedGallery | None:
        """The gallery that was added from this address."""
        return next((one for one in self.all() if one.address == address and not one.error), None)

    def keep(self, found: AddedGallery, name: str = "") -> tuple[AddedGallery, list[str]]:
        """Write what was found: over what its address listed before, else under `name` or one made of its title.

        Returns it, and a line for each entry that is new, gone or another file than before.
        """
        before = self.at(found.address)
        name = name or (before.name if before else self._free_name(found))
        if not _is_name(name):
            raise GalleryError("no name for a gallery", where=name, expected="a-z, 0-9, -, . and _")
        there = next((one for one in self.all() if one.name == name), None)
        if there is not None and not there.error and there.address != found.address:
            raise GalleryError(
                "another gallery has this name", where=name, got=there.address, do="choose another (--name)"
            )
        kept = replace(found, name=name)
        make_folder(self.folder)
        write_bytes(self._path(name), _to_json(kept))
        if before and before.name != name:
            self.remove(before.name)
        return kept, changes(before.entries, kept.entries) if before else []

    def remove(self, name: str) -> None:
        """Forget a gallery; what was installed from it stays. Raises NotInLibrary."""
        if name not in [one.name for one in self.all()]:
            self.named(name)
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _free_name(self, found: AddedGallery) -> str:
        host = urlsplit(found.address).hostname or Path(found.address).stem
        taken = {one.name for one in self.all()}
        return free_name(_plain(found.title) or _plain(host) or "gallery", taken.__contains__)

    def _read(self, path: Path) -> AddedGallery:
        try:
            obj = parse(path.read_bytes()[: 4 * MAX_INDEX], str(path))
            return _from_json(path.stem, obj, str(path))
        except (OSError, SordinoError, KeyError, TypeError, ValueError) as error:
            return AddedGallery(path.stem, error=f"its file cannot be read ({error})")


def changes(before: tuple[GalleryEntry, ...], now: tuple[GalleryEntry, ...]) -> list[str]:
    """A line for each entry that is new, gone, or another file than before."""
    old, new = ({entry.name: entry for entry in entries} for entries in (before, now))
    lines = [f"new: {name}" for name in new if name not in old]
    lines += [f"gone: {name}" for name in old if name not in new]
    for name in [name for name in new if name in old]:
        first, second = (_identity(entries[name]) for entries in (old, new))
        if first != second:
            lines.append(f"changed: {name} is another file than before ({first} before, {second} now)")
    return lines


def _identity(entry: GalleryEntry) -> str:
    return f"sha256 {entry.sha256[:16]}..." if entry.sha256 else f"{entry.bytes} bytes at {entry.url}"


def _of_web(web: Web, address: str, most: Reach) -> tuple[bytes, str, Reach]:
    with web.get(address, most) as answer:
        return answer.body(MAX_INDEX), answer.url, answer.reach


def _of_file(address: str) -> bytes:
    try:
        with Path(address).expanduser().open("rb") as file:
            data = file.read(MAX_INDEX + 1)
    except OSError as error:
        raise GalleryError(
            "neither an address nor a file that can be read", where=address, got=error.strerror, expected="https://..."
        ) from error
    if len(data) > MAX_INDEX:
        raise GalleryError("too large", where=address, expected=f"at most {MAX_INDEX} bytes")
    return data


def _is_index(data: bytes) -> bool:
    return data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def _text(data: bytes) -> str:
    return data.decode("utf-8-sig", "replace")


def _absolute(index: GalleryIndex, url: str, address: str) -> tuple[GalleryEntry, ...]:
    entries = tuple(replace(entry, url=joined(url, entry.url)) for entry in index.entries)
    if any("://" not in entry.url for entry in entries):
        raise GalleryError(
            "its files are beside it, so it is added by its address", where=address, expected="https://..."
        )
    return entries


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"['’]", "", text.casefold())).strip("-")[:_MAX_NAME].strip("-")


def _is_name(name: str) -> bool:
    return re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,60}", name) is not None


def _to_json(gallery: AddedGallery) -> bytes:
    obj: dict[str, Any] = {"format": f"{FORMAT}, added", "version": VERSION}
    obj |= {key: getattr(gallery, key) for key in ("address", "title", "is_list", "seen")}
    obj |= {"reach": gallery.reach.name, "notes": list(gallery.notes)}
    obj |= {"entries": [entry_to_json(entry) for entry in gallery.entries]}
    return (json.dumps(obj, ensure_ascii=False, indent=1) + "\n").encode()


def _from_json(name: str, obj: Mapping[str, Any], where: str) -> AddedGallery:
    """Raises what a dict, a list or the reader of entries raises."""
    if (obj["format"], obj["version"]) != (f"{FORMAT}, added", VERSION):
        raise ValueError("of another version")
    entries = tuple(
        entry_from_json(entry, f"{where}: entries[{number}]", hashed=not obj["is_list"])
        for number, entry in enumerate(obj["entries"])
    )
    texts = {key: str(obj[key]) for key in ("address", "title", "seen")}
    notes = tuple(map(str, obj["notes"]))
    return AddedGallery(
        name, **texts, reach=Reach[obj["reach"]], is_list=bool(obj["is_list"]), entries=entries, notes=notes
    )
