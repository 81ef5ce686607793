"""Galleries that were added: their files, their names, what is told of a change; and as a source of prompt files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sordino import formats
from sordino.errors import GalleryError, NotInLibrary
from sordino.library.gallery.added import AddedGallery, Galleries, changes, found_at
from sordino.library.gallery.build import build_site
from sordino.library.gallery.index import GalleryEntry, GalleryIndex, write_index
from sordino.library.gallery.source import GallerySource
from sordino.library.gallery.web import Reach, Web
from sordino.library.library import Library
from tests.library.gallery.serving import FileHost, file_host
from tests.library.gallery.test_index import BARE, FULL
from tests.library.source_conformance import check
from tests.prompt_files import drop

ONE = AddedGallery("", "https://files.example/gallery.json", "Ines' Voices", entries=(FULL, BARE))


@pytest.fixture
def galleries(tmp_path: Path) -> Galleries:
    return Galleries(tmp_path / "galleries")


def test_what_is_kept_is_read_again(galleries: Galleries) -> None:
    kept, lines = galleries.keep(replace(ONE, reach=Reach.NETWORK, notes=("a line",)))
    assert (kept.name, lines) == ("ines-voices", [])
    assert galleries.all() == [kept] == [galleries.named("ines-voices")]
    assert kept == replace(ONE, name="ines-voices", reach=Reach.NETWORK, notes=("a line",))


def test_names(galleries: Galleries) -> None:
    names = []
    for number, title in enumerate(["../../x", "", "灯台", "x" * 500, "", "Hub."]):
        found = replace(ONE, address=f"https://files.example/{number}", title=title)
        names.append(galleries.keep(found)[0].name)
    assert names == ["x", "files-example", "files-example-2", "x" * 60, "files-example-3", "hub"]
    assert sorted(path.stem for path in galleries.folder.iterdir()) == sorted(names)
    for name in ("../x", "a/b", "", "A", ".x"):
        if name:
            with pytest.raises(GalleryError, match="no name"):
                galleries.keep(ONE, name)
    with pytest.raises(NotInLibrary):
        galleries.named("../galleries/x")


def test_what_has_changed(galleries: Galleries) -> None:
    galleries.keep(ONE)
    entries = (replace(FULL, sha256="1" * 64), replace(BARE, name="other"), replace(BARE, title="another title"))
    kept, lines = galleries.keep(replace(ONE, title="New title", entries=entries))
    assert kept.name == "ines-voices"
    assert lines == [
        "new: other",
        f"changed: golden is another file than before (sha256 {FULL.sha256[:16]}... before, sha256 {'1' * 16}... now)",
    ]
    assert changes(entries, ()) == ["gone: golden", "gone: other", "gone: bare"]
    # A new name takes the old one's place.
    galleries.keep(ONE, "mine")
    assert [one.name for one in galleries.all()] == ["mine"]


def test_a_broken_file_has_its_reason_and_can_be_removed(galleries: Galleries) -> None:
    galleries.keep(ONE)
    (galleries.folder / "broken.json").write_text('{"format": 1}')
    (galleries.folder / "cut.json").write_bytes((galleries.folder / "ines-voices.json").read_bytes()[:-50])
    broken, cut, good = galleries.all()
    assert "cannot be read" in broken.error
    assert "cannot be read" in cut.error
    assert not good.error
    with pytest.raises(GalleryError, match="sordino gallery remove broken"):
        galleries.named("broken")
    for name in ("broken", "cut"):
        galleries.remove(name)
    assert galleries.all() == [good]


@pytest.fixture
def host(tmp_path: Path, empty_cache: Path) -> Iterator[FileHost]:
    voices = tmp_path / "voices"
    voices.mkdir()
    for seed, name in enumerate(("gothic", "noir")):
        drop(voices / f"{name}.zip", seed=seed, description=f"number {seed}")
    build_site(voices, tmp_path / "site", title="Voices")
    with file_host(tmp_path / "site") as one:
        yield one


def found(host: FileHost, path: str, most: Reach = Reach.MACHINE) -> AddedGallery:
    with Web() as web:
        return found_at(web, host.url + path, most=most)


@pytest.mark.parametrize("is_list", [False, True])
def test_it_is_a_source(host: FileHost, tmp_path: Path, *, is_list: bool) -> None:
    host.files["/list"] = b"[one](files/gothic.zip) [two](files/noir.zip)"
    gallery = replace(found(host, "/list" if is_list else "/gallery.json"), name="voices")
    assert gallery.is_list == is_list
    with Web() as web:
        source = GallerySource(gallery, web, tmp_path / "files")
        check(source)
        with pytest.raises(NotInLibrary):
            source.open(replace(next(iter(source.list())), revision="another"))
        library = Library([tmp_path / "mine"], [source])
        assert [entry.name for entry in library.scan()] == ["gothic", "noir"]
        assert formats.read(library.resolve("noir")).metadata.description == "number 1"


def test_a_file_that_was_replaced_is_refused(host: FileHost, tmp_path: Path) -> None:
    gallery = found(host, "/gallery.json")
    host.files["/files/noir.zip"] = drop(tmp_path / "noir.zip", seed=9, description="number 9").read_bytes()
    with Web() as web:
        source = GallerySource(gallery, web, tmp_path / "files")
        with pytest.raises(GalleryError):
            source.open(source.item(gallery.entry("noir")))


def test_nothing_a_gallery_lists_may_be_nearer_than_itself(host: FileHost, tmp_path: Path) -> None:
    gallery = replace(found(host, "/gallery.json"), reach=Reach.INTERNET)
    host.asked.clear()
    with Web() as web:
        source = GallerySource(gallery, web, tmp_path / "files")
        with pytest.raises(GalleryError, match="leads to this machine"):
            source.open(source.item(gallery.entry("noir")))
    with pytest.raises(GalleryError, match="leads to this machine"):
        found(host, "/gallery.json", Reach.NETWORK)
    assert not host.asked


def test_a_file_with_an_index_needs_absolute_addresses(host: FileHost, tmp_path: Path) -> None:
    path = tmp_path / "gallery.json"
    path.write_bytes(host.content("/gallery.json") or b"")
    with Web() as web:
        with pytest.raises(GalleryError, match="added by its address"):
            found_at(web, str(path), most=Reach.MACHINE)
        entry = GalleryEntry(**{**vars(BARE), "url": "https://files.example/x.kv.zip"})
        path.write_bytes(write_index(GalleryIndex("x", (entry,))))
        assert found_at(web, str(path), most=Reach.MACHINE).entries == (entry,)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<html>nothing</html>", "no gallery, and no list"),
        (b'{"format": "other"}', "not a gallery"),
        (b"\x00\xff" * 1000, "no gallery"),
        (b"x" * (2 << 20), "too large for a list"),
        (b'<link rel="alternate" type="application/json" href="http://files.example/g.json">', "plain http"),
        (b'<link rel="alternate" type="application/json" href="//[">', "not an address"),
    ],
)
def test_pages_that_are_none(host: FileHost, content: bytes, what: str) -> None:
    host.files["/page"] = content
    with pytest.raises(Exception, match=what):
        found(host, "/page")


def test_an_entry_of_another_scheme_is_refused_with_the_index(host: FileHost) -> None:
    index = json.loads(host.content("/gallery.json") or b"")
    index["entries"][0]["url"] = "http://files.example/x.zip"
    host.files["/other.json"] = json.dumps(index).encode()
    gallery = found(host, "/other.json")
    with Web() as web:
        source = GallerySource(gallery, web, Path("never"))
        with pytest.raises(GalleryError, match="plain http"):
            source.open(source.item(gallery.entries[0]))
