"""gallery build, add, list, remove, and install from one, as a user types them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sordino import formats
from sordino.library.library import Library
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.cli.commands import KNOWN, done, library_with_keeper, ok, refused
from tests.library.gallery.serving import FileHost, file_host
from tests.prompt_files import matrix


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the user, empty, with its own data and cache."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path / "cache"))
    library_with_keeper(tmp_path, monkeypatch)
    mine = tmp_path / "mine"
    mine.mkdir()
    monkeypatch.setenv("SORDINO_LIBRARY", str(mine))
    return mine


@pytest.fixture
def host(library: Path, tmp_path: Path) -> Iterator[FileHost]:
    """The gallery of a library with one soft prompt, served."""
    ok("gallery", "build", tmp_path / "library", "--out", tmp_path / "site", "--title", "My voices")
    with file_host(tmp_path / "site") as one:
        yield one


def test_build_says_what_it_left_out(library: Path, tmp_path: Path) -> None:
    (tmp_path / "library" / "bad.zip").write_bytes(b"nothing")
    result = done("gallery", "build", tmp_path / "library", "--out", tmp_path / "site", "--json")
    assert "left out: bad.zip" in result.stderr
    assert "--url" in result.stderr
    assert json.loads(result.stdout)["names"] == ["keeper"]
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "bad.zip").write_bytes(b"nothing")
    for folder, site in ((library, "empty"), (broken, "site/deeper")):
        assert "no soft prompt to offer" in refused("gallery", "build", folder, "--out", tmp_path / site)
        assert not (tmp_path / site).exists()
    assert "no such folder" in refused("gallery", "build", tmp_path / "typo", "--out", tmp_path / "site")
    assert "plain http" in refused(
        "gallery", "build", tmp_path / "library", "--out", tmp_path / "site", "--url", "http://files.example"
    )


def cached(tmp_path: Path) -> list[str]:
    """What galleries have in the cache."""
    return [path.name for path in (tmp_path / "cache" / "galleries").rglob("*.zip")]


def test_from_the_page_to_the_library(host: FileHost, library: Path, tmp_path: Path) -> None:
    added = ok("gallery", "add", f"{host.url}/index.html")
    assert "My voices: 1 soft prompt" in added
    # The page and its data are one gallery.
    ok("gallery", "add", f"{host.url}/gallery.json")
    assert ok("gallery", "list").count("my-voices") == 1
    assert "sordino install keeper@my-voices" in added
    assert "my-voices" in ok("gallery", "list")
    listed = ok("gallery", "list", "my-voices")
    assert "keeper@my-voices" in listed
    assert "org/small" in listed
    assert "Installed keeper" in ok("install", "keeper@my-voices")
    assert formats.read(library / "keeper.zip").metadata == KNOWN
    assert cached(tmp_path) == [], "the library has it"
    assert "Already in the library" in ok("install", "keeper@my-voices")
    Library([library]).add(SoftPrompt(matrix(9), KNOWN), name="keeper", replace=True)
    assert "another soft prompt has this name" in refused("install", "keeper@my-voices")
    assert cached(tmp_path) == ["keeper.zip"], "for another try"
    ok("install", "keeper@my-voices", "--replace")
    assert cached(tmp_path) == []
    ok("gallery", "remove", "my-voices")
    assert "No gallery has been added yet" in ok("gallery", "list")
    assert (library / "keeper.zip").is_file()


def test_how_well_it_fits_a_model(host: FileHost) -> None:
    ok("gallery", "add", host.url + "/gallery.json", "--name", "mine")
    assert "no" in ok("gallery", "list", "mine", "--model", "smollm2").split("kB")[1]


def test_what_has_changed_is_told_and_not_taken_unasked(host: FileHost, library: Path, tmp_path: Path) -> None:
    ok("gallery", "add", f"{host.url}/gallery.json")
    Library([tmp_path / "library"]).add(SoftPrompt(matrix(7), KNOWN), name="keeper", replace=True)
    Library([tmp_path / "library"]).add(SoftPrompt(matrix(8), Metadata(name="New")), name="new")
    ok("gallery", "build", tmp_path / "library", "--out", tmp_path / "site", "--title", "My voices")
    error = refused("install", "keeper@my-voices")
    assert "not the file that was listed" in error
    assert not list(library.iterdir())
    again = ok("gallery", "add", f"{host.url}/gallery.json")
    assert "new: new" in again
    assert "changed: keeper is another file than before" in again
    ok("install", "keeper@my-voices")
    assert np.array_equal(formats.read(library / "keeper.zip").matrix, matrix(7))


def test_an_address_with_its_hash(host: FileHost, library: Path) -> None:
    entry = json.loads(host.content("/gallery.json") or b"")["entries"][0]
    url = f"{host.url}/{entry['url']}"
    assert "nothing is known" in refused("install", f"{url}#md5=1")
    assert "not the file" in refused("install", f"{url}#sha256={'0' * 64}")
    assert "the address of a folder" in refused("install", host.url + "/")
    result = done("install", f"{url}#sha256={entry['sha256']}")
    assert f"sha256 {entry['sha256']}" in result.stderr
    assert "Installed keeper" in result.stdout
    assert "Installed other" in ok("install", url, "--name", "other")


def test_a_list_in_a_text(host: FileHost, library: Path, tmp_path: Path) -> None:
    text = tmp_path / "message.txt"
    text.write_text(f"My voices:\n- {host.url}/files/keeper.zip (the keeper)\n- <{host.url}/files/none.zip>\n")
    result = done("gallery", "add", text)
    assert "HTTP 404" in result.stderr
    assert "states no hashes" in result.stderr
    assert "Installed keeper" in ok("install", "keeper@message")
    assert formats.read(library / "keeper.zip").metadata == KNOWN


def test_mistakes_are_one_line(host: FileHost, library: Path, tmp_path: Path) -> None:
    assert "neither an address nor a file" in refused("gallery", "add", tmp_path / "typo")
    assert "plain http" in refused("gallery", "add", "http://files.example/voices")
    assert "no gallery" in refused("gallery", "add", f"{host.url}/gallery.css")
    assert "HTTP 404" in refused("gallery", "add", f"{host.url}/typo")
    ok("gallery", "add", f"{host.url}/gallery.json")
    assert "did you mean keeper?" in refused("install", "keepr@my-voices")
    assert "did you mean my-voices?" in refused("gallery", "list", "my-voice")
    assert "sordino gallery list" in refused("install", "keeper@my-voice")
    host.files["/list"] = f"{host.url}/files/keeper.zip".encode()
    assert "another gallery has this name" in refused("gallery", "add", f"{host.url}/list", "--name", "my-voices")
    assert "no name for a gallery" in refused("gallery", "add", f"{host.url}/index.html", "--name", "../x")
