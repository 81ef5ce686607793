"""A folder of soft prompts as a web site: what it holds, what texts of strangers become in it, and what a second build does."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from sordino import formats
from sordino.errors import BadInput
from sordino.library.gallery.build import build_site
from sordino.library.gallery.index import read_index
from sordino.library.library import Library
from sordino.models.cache import sha256_of
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.cli.commands import KNOWN
from tests.prompt_files import drop, matrix

EVIL = "<script>alert(1)</script>\" onload='x' \x0b\u202e]]> & {{ 7 * 7 }}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "voices"
    library = Library([made])
    made.mkdir()
    library.add(SoftPrompt(matrix(1), KNOWN), name="keeper")
    return made


def files(site: Path) -> dict[str, bytes]:
    return {str(path.relative_to(site)): path.read_bytes() for path in site.rglob("*") if path.is_file()}


def test_all_kinds_and_their_hashes(folder: Path, tmp_path: Path) -> None:
    part = SoftPrompt(matrix(2), Metadata(name="Part"))
    formats.write_mixture(Mixture((part, part), np.ones(2), metadata=Metadata(name="Both")), folder / "both.mix.zip")
    drop(folder / "old file (1).zip", seed=3)
    formats.write(part, folder / "peft", to="peft")
    (folder / "broken.zip").write_bytes(b"PK")
    built = build_site(folder, tmp_path / "site")
    assert [line.partition(":")[0] for line in built.left_out] == ["broken.zip"]
    assert [entry.url for entry in built.index.entries] == [
        "files/both.mix.zip", "files/keeper.zip", "files/old%20file-1.zip", "files/peft.zip",
    ]  # fmt: skip
    assert read_index((tmp_path / "site" / "gallery.json").read_bytes(), "site") == built.index
    for entry in built.index.entries:
        path = tmp_path / "site" / entry.url.replace("%20", " ")
        assert (entry.sha256, entry.bytes) == (sha256_of(path), path.stat().st_size)
        assert formats.read_any(path).n_tokens == entry.n_tokens
    keeper = built.index.entries[1]
    assert (keeper.title, keeper.rating, keeper.licence, keeper.base.id) == (
        "The Keeper", "general", "CC-BY-4.0", "org/small",
    )  # fmt: skip
    assert keeper.samples == KNOWN.samples


def test_equal_folders_give_equal_sites(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_site(folder, tmp_path / name, title="Same", url="https://files.example/v")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_texts_stay_texts(folder: Path, tmp_path: Path) -> None:
    one_line = EVIL.replace("\x0b", "")
    known = Metadata(
        name=EVIL,
        author=EVIL,
        description=EVIL,
        tags=(EVIL,),
        licence=EVIL,
        created=EVIL,
        samples=({"prompt": EVIL, "with": EVIL, "without": EVIL},),
    )
    Library([folder]).add(SoftPrompt(matrix(5), known), name="evil")
    build_site(folder, tmp_path / "site", title=one_line.replace("\u202e", ""))
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "{{ 7 * 7 }}" in page
    assert page.count("<script") == 1
    feed = ElementTree.fromstring((tmp_path / "site" / "feed.xml").read_bytes())
    assert any("<script>alert(1)</script>" in (title.text or "") for title in feed.iter("title"))


def test_the_page_asks_nothing_of_elsewhere(folder: Path, tmp_path: Path) -> None:
    build_site(folder, tmp_path / "site")
    for name in ("index.html", "gallery.css", "gallery.js"):
        text = (tmp_path / "site" / name).read_text(encoding="utf-8")
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text


def test_mature_ones_are_hidden_and_in_no_feed(folder: Path, tmp_path: Path) -> None:
    Library([folder]).add(SoftPrompt(matrix(5), Metadata(name="Dark", rating="explicit")), name="dark")
    site = tmp_path / "site"
    build_site(folder, site, url="https://files.example/v")
    page, feed = ((site / name).read_text() for name in ("index.html", "feed.xml"))
    assert "data-mature hidden" in page
    assert '<option value="">Not mature</option><option value="all">All ratings</option>' in page
    assert '<option value="explicit">Explicit</option></select>' in page
    assert "Dark" not in feed
    assert "https://files.example/v/files/keeper.zip" in feed


def test_a_page_of_one_rating_has_no_filter_for_it(folder: Path, tmp_path: Path) -> None:
    build_site(folder, tmp_path / "site")
    assert 'id="rating"' not in (tmp_path / "site" / "index.html").read_text()
    Library([folder]).add(SoftPrompt(matrix(5), Metadata(name="Unrated")), name="unrated")
    build_site(folder, tmp_path / "site")
    page = (tmp_path / "site" / "index.html").read_text()
    assert '<option value="">All ratings</option><option value="general">General</option></select>' in page


def test_a_second_build_takes_away_what_is_gone_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    drop(folder / "noir.zip", seed=3)
    build_site(folder, site)
    (site / "CNAME").write_text("voices.example")
    (site / "files" / "mine.zip").write_bytes(b"mine")
    (folder / "noir.zip").unlink()
    build_site(folder, site)
    assert set(files(site)) == {
        "CNAME", "feed.xml", "files/keeper.zip", "files/mine.zip", "gallery.css", "gallery.js", "gallery.json", "index.html",
    }  # fmt: skip


def test_another_page_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("mine")
    with pytest.raises(BadInput, match="another page"):
        build_site(folder, site)
    assert files(site) == {"index.html": b"mine"}


def test_the_packaged_prompts(tmp_path: Path) -> None:
    built = build_site(Path(str(resources.files("sordino").joinpath("data", "prompts"))), tmp_path / "site")
    assert [entry.name for entry in built.index.entries] == ["keeper", "port-dolor", "village-gazette"]
    assert not built.left_out
    assert all(entry.gain and entry.samples and entry.licence for entry in built.index.entries)
