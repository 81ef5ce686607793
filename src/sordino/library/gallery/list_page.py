"""A plain list of soft prompts: a page, a note or a message with links to zips. Links are found, and their files looked at."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from sordino import formats
from sordino.errors import GalleryError, SordinoError
from sordino.formats.sources import Files, check_range
from sordino.library.gallery.describing import described
from sordino.library.gallery.index import MAX_FILE, GalleryEntry, is_url
from sordino.library.gallery.web import Reach, Web
from sordino.library.names import free_name, safe_name, without_ending

# Gets the number of links that were followed, and of all.
LinkProgress = Callable[[int, int], None]
MAX_LINKS = 300
# Pages of real lists have some 100 KB; Python's parser is slow on hostile ones.
MAX_PAGE = 1 << 20
_AT_ONCE = 8
# A header is at the beginning or the end of a zip: two requests for most files.
_BLOCK = 1 << 16
_MOST_BLOCKS = 64
_ADDRESS = re.compile(r"https?://[^\s<>\"'\\`|^{}]+")
_MARKDOWN = re.compile(r"\]\(\s*<?([^\s()<>]+(?:\([^\s()<>]*\)[^\s()<>]*)*)")
_HTML = re.compile(r"<(!doctype html|html|head|body|a|p|div)\b", re.IGNORECASE)


class _Anchors(HTMLParser):
    """The addresses of links, and of the data that a page shows, where it states that."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.data: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        address = given.get("href") or ""
        if tag == "a" and address:
            self.links.append(address)
        elif (
            tag == "link"
            and "alternate" in (given.get("rel") or "").split()
            and given.get("type") == "application/json"
        ):
            self.data.append(address)


def data_of(text: str) -> str:
    """The address of the gallery.json that a page is the view of, "" where it names none."""
    return next(iter(_anchors(text).data), "")


def links(text: str, base: str = "") -> list[str]:
    """The absolute addresses of zips that a text links to, each once, in its order. base: what relative links are relative to."""
    found = [
        *(_anchors(text).links if _HTML.search(text) else _MARKDOWN.findall(text)),
        *map(_trimmed, _ADDRESS.findall(text)),
    ]
    wanted = dict.fromkeys(filter(None, (_of_zip(one, base) for one in found)))
    return list(wanted)


def _anchors(text: str) -> _Anchors:
    parser = _Anchors()
    parser.feed(text)
    return parser


def _trimmed(address: str) -> str:
    """A bare address in a sentence, without what ends the sentence."""
    address = address.rstrip(".,;:!?*_~")
    return address.rstrip(")") if address.count(")") > address.count("(") else address


def _of_zip(address: str, base: str) -> str:
    try:
        parts = urlsplit(urljoin(base, address.replace("&amp;", "&")))
    except ValueError:
        return ""
    # The Hub shows a page at this address, and has the file at the other.
    path = parts.path.replace("/blob/", "/resolve/", 1) if parts.hostname == "huggingface.co" else parts.path
    if parts.scheme not in ("http", "https") or not path.lower().endswith(".zip"):
        return ""
    url = urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
    return url if is_url(url) else ""


class RemoteZip:
    """A file behind an address as a `Readable`: reads blocks where they are needed, and no more than a header can have.

    Raises GalleryError where the server gives no parts of files.
    """

    def __init__(self, web: Web, url: str, most: Reach) -> None:
        self.where = url
        self._web, self._most, self._blocks = web, most, dict[int, bytes]()
        self.size = 0
        self.size = self._fetch(0)

    def read_at(self, offset: int, count: int) -> bytes:
        check_range(self, offset, count)
        numbers = range(offset // _BLOCK, (offset + count - 1) // _BLOCK + 1) if count else range(0)
        for number in numbers:
            if number not in self._blocks:
                self._fetch(number)
        data = b"".join(self._blocks[number] for number in numbers)
        return data[offset % _BLOCK :][:count]

    def verify(self) -> None:
        pass

    def _fetch(self, number: int) -> int:
        """Returns the size of the whole."""
        if len(self._blocks) >= _MOST_BLOCKS:
            raise GalleryError("its header is larger than a soft prompt has", where=self.where)
        begin = number * _BLOCK
        with self._web.get(self.where, self._most, begin=begin, count=_BLOCK) as answer:
            # A small file may come whole, whatever was asked for.
            if answer.start != begin or answer.size is None or (answer.status == 200 and answer.size > _BLOCK):
                raise GalleryError("the server gives no parts of files, so it was not looked at", where=self.where)
            if self.size not in (0, answer.size):
                raise GalleryError("it changed while it was looked at", where=self.where)
            if not 0 < answer.size <= MAX_FILE:
                raise GalleryError("of no size that a soft prompt has", where=self.where, got=f"{answer.size} bytes")
            data = answer.body(_BLOCK)
            if len(data) != min(_BLOCK, answer.size - begin):
                raise GalleryError("broken off", where=self.where)
            self._blocks[number] = data
            return answer.size


def entry_at(web: Web, url: str, most: Reach) -> GalleryEntry:
    """What the header of the zip at `url` says; its numbers are not fetched. Raises GalleryError, SoftPromptFileError."""
    file_name = unquote(PurePosixPath(urlsplit(url).path).name)
    with Files() as files:
        source = RemoteZip(web, url, most)
        files.size = source.size
        peeked = formats.peek_zip(source, files, Path(file_name))
    return described(peeked, name=safe_name(without_ending(file_name)), url=url, size=source.size)


def entries_at(
    web: Web, urls: Iterable[str], most: Reach, progress: LinkProgress | None = None
) -> tuple[list[GalleryEntry], list[str]]:
    """The entries of all addresses that lead to soft prompts, each with a name of its own, and a line for each that does not."""
    wanted = list(urls)
    found: list[GalleryEntry] = []
    notes = [f"only the first {MAX_LINKS} of {len(wanted)} links were looked at"] if len(wanted) > MAX_LINKS else []
    wanted = wanted[:MAX_LINKS]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found_or_not = pool.map(lambda url: _entry_or_reason(web, url, most), wanted)
        for done, (url, one) in enumerate(zip(wanted, found_or_not, strict=True), 1):
            if isinstance(one, str):
                notes.append(one if url in one else f"{url}: {one}")
            else:
                found.append(one)
            if progress is not None:
                progress(done, len(wanted))
    return list(_named_apart(found)), notes


def _entry_or_reason(web: Web, url: str, most: Reach) -> GalleryEntry | str:
    try:
        return entry_at(web, url, most)
    except SordinoError as error:
        return error.message


def _named_apart(entries: list[GalleryEntry]) -> Iterator[GalleryEntry]:
    """Names are compared without case, as some drives do."""
    taken = set[str]()
    for entry in entries:
        name = free_name(entry.name, lambda one: one.casefold() in taken)
        taken.add(name.casefold())
        yield replace(entry, name=name)
