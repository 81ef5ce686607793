"""Soft prompts from a stand-in for the Hub: found, described, fetched, installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sordino import formats
from sordino.errors import BadInput, HubError, NameTaken, NotInLibrary
from sordino.library import hub
from sordino.library.hub_files import local_path
from sordino.library.hub_names import HubReference, parse_reference
from sordino.library.installing import PLAIN, Installed, Wanted
from sordino.library.library import Library
from sordino.library.origins import origin_of, origins
from sordino.library.source import Item
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.hub_repositories import adapter_of, files_of, keeper, npy
from tests.hub_server import StandIn, killed_halfway
from tests.library.source_conformance import check


def install(library: Library, text: str, wanted: Wanted = PLAIN) -> Installed:
    return hub.install_from_hub(library, hub.describe(parse_reference(text)), wanted, warn=print)


def asked_for(server: StandIn, part: str) -> list[str]:
    return [path for _, path in server.log if part in path]


# Names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:ines/keeper", HubReference("ines/keeper")),
        ("hf:ines/keeper@v1.0", HubReference("ines/keeper", "v1.0")),
        ("hf:ines/keeper@refs/pr/1", HubReference("ines/keeper", "refs/pr/1")),
        ("hf:ines/keeper/a b.zip@main", HubReference("ines/keeper", "main", "a b.zip")),
    ],
)
def test_a_reference_is_read_and_written(text: str, expected: HubReference) -> None:
    assert parse_reference(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "hf:keeper",
        "hf:",
        "hf:ines/../x",
        "hf:ines/-x",
        "hf:a/b/c/d",
        "hf:ines/keeper@",
        "hf:i/k\x1b",
        "hf:i/" + "k" * 200,
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="Hugging Face Hub"):
        parse_reference(text)


# The seam


def test_a_repository_is_a_source(server: StandIn, tmp_path: Path) -> None:
    server.add("ines/keeper", files_of(keeper(), tmp_path / "1"))
    server.add("max/adapter", adapter_of(keeper(1), tmp_path / "2"))
    check(hub.HubRepository(HubReference("ines/keeper")))
    check(hub.HubRepository(HubReference("max/adapter")))


def test_a_source_that_cannot_be_reached_is_empty(server: StandIn) -> None:
    server.fail = (500, {})
    assert list(hub.HubRepository(HubReference("ines/keeper")).list()) == []


def test_a_library_lists_a_repository(server: StandIn, library: Library, tmp_path: Path) -> None:
    server.add("ines/keeper", files_of(keeper(), tmp_path / "1"))
    (entry,) = Library(library.folders, [hub.HubRepository(HubReference("ines/keeper"))]).scan()
    assert (entry.name, entry.metadata.description, entry.n_tokens) == ("keeper", "Logs of a light", 4)


def test_a_revision_that_moved_is_still_what_was_described(server: StandIn, tmp_path: Path) -> None:
    made = server.add("ines/keeper", files_of(keeper(1), tmp_path / "1"))
    source = hub.HubRepository(HubReference("ines/keeper", "main"))
    (item,) = source.list()
    described = hub.describe(HubReference("ines/keeper"))
    made.commit(files_of(keeper(2), tmp_path / "2"))
    assert formats.read(source.open(item)).content_hash == keeper(1).content_hash
    assert formats.read(hub.fetch(described)).content_hash == keeper(1).content_hash
    (moved,) = source.list()
    assert moved.revision != item.revision
    assert formats.read(source.open(moved)).content_hash == keeper(2).content_hash
    with pytest.raises(NotInLibrary, match="gone"):
        source.open(Item("keeper", item.path, "0" * 40))


# Install


def test_install_pins_the_commit_and_remembers_it(server: StandIn, library: Library, tmp_path: Path) -> None:
    made = server.add("ines/keeper", files_of(keeper(), tmp_path / "1"))
    found = install(library, "hf:ines/keeper@main")
    origin = origin_of(library.folders[0], keeper().content_hash)
    assert origin is not None
    assert origin == found.origin
    assert (origin.source, origin.revision, origin.file) == ("hf:ines/keeper", made.refs["main"], "keeper.zip")
    assert len(origin.sha256) == 64
    assert origins(library.folders[0]) == {keeper().content_hash: origin}
    assert formats.read(library.resolve("keeper")).metadata == keeper().metadata
    # The pinned commit and no branch was asked for.
    assert asked_for(server, "/resolve/main/") == []
    assert [entry.name for entry in library.scan()] == ["keeper"]


def test_a_new_state_of_the_repository_is_told_from_the_old(server: StandIn, library: Library, tmp_path: Path) -> None:
    made = server.add("ines/keeper", files_of(keeper(1), tmp_path / "1"))
    first = made.refs["main"]
    install(library, "hf:ines/keeper")
    made.commit(files_of(keeper(2), tmp_path / "2"))
    with pytest.raises(NameTaken, match="another soft prompt has this name"):
        install(library, "hf:ines/keeper")
    assert not install(library, f"hf:ines/keeper@{first}").new
    assert install(library, "hf:ines/keeper", Wanted(replace=True)).new
    assert {one.revision for one in origins(library.folders[0]).values()} == {first, made.refs["main"]}


def test_an_adapter_alone_gets_the_name_of_its_repository(server: StandIn, library: Library, tmp_path: Path) -> None:
    files = files_of(keeper(), tmp_path / "1")
    server.add("max/seven", {name: files[name] for name in ("adapter_config.json", "adapter_model.safetensors")})
    found = install(library, "hf:max/seven")
    assert (found.entry.name, found.prompt.metadata.name, found.prompt.metadata.base.id) == (
        "seven",
        "seven",
        "org/small",
    )


def test_one_of_several_files_is_named(server: StandIn, library: Library) -> None:
    server.add("max/many", {"a.npy": npy(keeper(1)), "b.npy": npy(keeper(2))})
    assert install(library, "hf:max/many/b.npy").prompt.content_hash == keeper(2).content_hash


def test_progress_is_of_all_files(server: StandIn, tmp_path: Path) -> None:
    files = adapter_of(keeper(), tmp_path / "1")
    server.add("max/adapter", files)
    listing, seen = hub.describe(HubReference("max/adapter")), []
    hub.fetch(listing, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (listing.size, listing.size)
    assert {total for _, total in seen} == {sum(file.size for file in listing.files)}


def test_what_is_here_is_not_downloaded_again(server: StandIn, tmp_path: Path) -> None:
    server.add("ines/keeper", files_of(keeper(), tmp_path / "1"))
    listing = hub.describe(HubReference("ines/keeper"))
    hub.fetch(listing)
    server.log.clear()
    hub.fetch(listing)
    assert server.log == []


def test_a_connection_that_is_cut_is_taken_up_again(server: StandIn, library: Library, tmp_path: Path) -> None:
    server.add("ines/keeper", files_of(keeper(), tmp_path / "1"))
    server.cuts = 1
    assert install(library, "hf:ines/keeper").new
    assert len([one for one in server.log if one[0] == "GET" and "/resolve/" in one[1]]) == 2


@pytest.mark.slow
def test_a_killed_download_leaves_the_library_as_it_was(server: StandIn, library: Library, tmp_path: Path) -> None:
    """And what has arrived of it stays for the next: whole pieces of the Hub's client."""
    piece = 10 << 20
    large = SoftPrompt(np.zeros((400, 1 << 14), np.float32), Metadata())
    server.add("ines/large", {"large.npy": npy(large)})

    def has_arrived() -> bool:
        return sum(path.stat().st_size for path in (tmp_path / "home").rglob("large.npy.part")) == piece

    command = ("install", "hf:ines/large", "--library", library.folders[0])
    with killed_halfway(server, tmp_path / "home", *command, ready=has_arrived):
        assert [path.name for path in library.folders[0].rglob("*")] == []
    assert server.ranges == [f"bytes={piece}-"]
    assert library.entry("large").error == ""
    assert not list((tmp_path / "home").rglob("*.part"))


def test_what_is_left_of_a_download_is_checked_with_the_rest(server: StandIn, library: Library) -> None:
    content = npy(keeper())
    made = server.add("ines/keeper", {"keeper.npy": content})
    place = local_path(HubReference("ines/keeper", made.refs["main"]), "keeper.npy")
    place.parent.mkdir(parents=True)
    left = place.with_name("keeper.npy.part")
    left.write_bytes(bytes(20))
    with pytest.raises(HubError, match="not what the Hub says"):
        install(library, "hf:ines/keeper")
    assert list(place.parent.iterdir()) == []
    left.write_bytes(content[:20])
    assert install(library, "hf:ines/keeper").prompt.content_hash == keeper().content_hash
    assert server.ranges == ["bytes=20-"] * 2


# Search


def test_search_finds_by_name_card_and_tag(server: StandIn, tmp_path: Path) -> None:
    server.add("ines/keeper", files_of(keeper(), tmp_path / "1"), downloads=3)
    server.add(
        "max/noir", files_of(keeper(1, name="Noir", description="Rain", tags=("crime",)), tmp_path / "2"), downloads=9
    )
    server.add("max/model", {"README.md": b"---\ntags: [text]\n---\n", "config.json": b"{}"})
    server.add("ines/secret", files_of(keeper(2), tmp_path / "3"), private=True)
    found = hub.search()
    assert [one.reference.repository for one in found] == ["max/noir", "ines/keeper"]
    for words, name in (("KEEPER", "ines/keeper"), ("logs light", "ines/keeper"), ("crime", "max/noir")):
        assert [one.reference.repository for one in hub.search(words)] == [name]
    assert hub.search("crime light") == []
    assert len(hub.search(limit=1)) == 1
    first = found[0]
    assert (first.downloads, first.author, first.claims.base_model, first.claims.n_tokens) == (9, "max", "org/small", 4)
    assert (first.claims.licence, first.claims.stated.metadata.base.fingerprint) == ("cc-by-4.0", "f" * 64)
    assert first.claims.stated.d_model == 8


HOSTILE = """---
tags: [soft-prompt, 7, {a: b}]
base_model: [1, 2]
license: {x: 1}
sordino: {name: [1], tokens: -5, content_sha256: 12, base: {d_model: wide, family: 3, fingerprint: [x]}, kv: [0, 1, a]}
---
"""


def test_a_card_of_any_kind_is_no_error(server: StandIn) -> None:
    server.add("max/x", {"README.md": HOSTILE.encode()})
    (found,) = hub.search()
    assert (found.claims.name, found.claims.n_tokens, found.claims.base_model, found.claims.stated.d_model) == (
        "",
        0,
        "",
        0,
    )
