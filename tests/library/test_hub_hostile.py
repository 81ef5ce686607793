"""Repositories of a stand-in for the Hub that hold something else, or lie; and answers of the Hub that are none."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from sordino import formats
from sordino.errors import HubError, SoftPromptFileError, StorageError
from sordino.formats.model_card import card
from sordino.library import hub
from sordino.library.hub_names import HubReference, parse_reference
from sordino.library.installing import Installed
from sordino.library.library import Library
from sordino.library.origins import origins
from sordino.prompts.soft_prompt import BaseRef
from tests.hub_repositories import adapter_of, files_of, keeper, npy
from tests.hub_server import TOKEN, StandIn


def install(library: Library, text: str) -> Installed:
    return hub.install_from_hub(library, hub.describe(parse_reference(text)), warn=print)


def is_downloaded(server: StandIn) -> bool:
    return any("/resolve/" in path for _, path in server.log)


def good() -> bytes:
    return npy(keeper())


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no soft prompt.*got README.md"),
        ({"model.safetensors": 1, "config.json": 1, "model-2.safetensors": 1}, "no soft prompt"),
        ({"a.zip": 1, "b.zip": 1}, r"several soft prompts.*a\.zip, b\.zip.*hf:max/x/FILE"),
        ({"prompt.pt": 1}, r"prompt\.pt is a pickle.*hf download max/x prompt\.pt.*sordino convert"),
        ({"adapter_config.json": 1, "adapter_model.bin": 1}, r"adapter_model\.bin is a pickle"),
        ({"adapter_config.json": 1}, "no soft prompt"),
        (
            {"../../../evil.zip": 1, "/etc/evil.zip": 1, "a\\b.zip": 1, "folder/deep.zip": 1, ".hidden.zip": 1},
            "no soft prompt",
        ),
    ],
)
def test_what_is_not_one_soft_prompt_is_refused_by_name(server: StandIn, files: dict[str, int], said: str) -> None:
    server.add("max/x", {"README.md": b"", **dict.fromkeys(files, good())})
    with pytest.raises(HubError, match=said):
        hub.describe(HubReference("max/x"))
    assert not is_downloaded(server)


@pytest.mark.parametrize("file", ["../x.zip", "prompt.pt", "config.json", "missing.zip"])
def test_no_other_file_is_downloaded_because_it_is_named(server: StandIn, file: str) -> None:
    server.add("max/x", {"prompt.pt": good(), "config.json": b"{}", "../x.zip": good()})
    with pytest.raises(HubError):
        hub.describe(HubReference("max/x", file=file))


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({"size": 5 << 30}, "too large.*at most 1,073.7 MB.*5,368.7 MB"),
        ({"size": None}, "does not say"),
        ({"size": 0}, "is empty"),
        ({"lfs": None, "blobId": None}, "does not say"),
    ],
)
def test_sizes_are_bounded_before_anything_is_downloaded(server: StandIn, lie: dict[str, Any], said: str) -> None:
    server.add("max/x", {"prompt.npy": good()}, lies={"prompt.npy": lie})
    with pytest.raises(HubError, match=said):
        hub.describe(HubReference("max/x"))
    assert not is_downloaded(server)


def test_an_adapters_json_is_small(server: StandIn, tmp_path: Path) -> None:
    files = adapter_of(keeper(), tmp_path / "1")
    server.add("max/x", files, lies={"sordino.json": {"size": 1 << 20}})
    with pytest.raises(HubError, match=r"sordino\.json is too large"):
        hub.describe(HubReference("max/x"))


WRONG = {"sha256": "0" * 64, "size": len(good()), "pointerSize": 130}


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({"lfs": WRONG}, "not what the Hub says"),
        ({"size": len(good()) + 1}, "not what the Hub says"),
        ({"size": len(good()) - 1}, "more arrives than the Hub stated"),
    ],
)
def test_what_arrives_has_the_stated_hash_and_size(
    server: StandIn, library: Library, tmp_path: Path, lie: dict[str, Any], said: str
) -> None:
    made = server.add("max/x", {"prompt.npy": good()}, lies={"prompt.npy": lie})
    with pytest.raises(HubError, match=said):
        install(library, "hf:max/x")
    assert library.scan() == []
    assert not [path for path in (tmp_path / "home").rglob("*.npy") if path.exists()]
    # Nothing wrong stays behind: once the Hub tells the truth, it is right.
    made.lies.clear()
    assert install(library, "hf:max/x").prompt.content_hash == keeper().content_hash


def test_gits_hash_counts_for_small_files(server: StandIn, library: Library, tmp_path: Path) -> None:
    files = adapter_of(keeper(), tmp_path / "1")
    server.add("max/x", files, lies={"sordino.json": {"blobId": "0" * 40}})
    with pytest.raises(HubError, match=r"sordino\.json is not what the Hub says"):
        install(library, "hf:max/x")
    assert library.scan() == []


def test_a_file_that_is_no_soft_prompt_stays_out(server: StandIn, library: Library) -> None:
    server.add("max/x", {"prompt.zip": b"PK\x03\x04 and nothing"})
    with pytest.raises(SoftPromptFileError):
        install(library, "hf:max/x")
    assert library.scan() == []
    assert origins(library.folders[0]) == {}


def test_a_card_that_lies_is_told(server: StandIn, tmp_path: Path) -> None:
    told = keeper(7, base=BaseRef("meta/other", "llama", 8), rating="general", licence="MIT")
    files = files_of(keeper(rating="explicit"), tmp_path / "1") | {"README.md": card(told)}
    server.add("max/x", files)
    listing = hub.describe(HubReference("max/x"))
    lines = hub.contradictions(listing.claims, formats.read(hub.fetch(listing)))
    text = "\n".join(lines)
    assert len(lines) == 4
    for part in (
        "content hash",
        "base model: it says meta/other, and the file org/small",
        "general, and the file explicit",
        "licence",
    ):
        assert part in text
    assert hub.contradictions(hub.describe(HubReference("max/x")).claims, told) == []


# Answers that are none

ANSWERS = [
    (
        401,
        {"X-Error-Message": "Invalid credentials in Authorization header"},
        "refuses the access token.*hf auth login",
    ),
    (401, {"X-Error-Code": "RepoNotFound"}, "no such repository.*may not see.*hf auth login"),
    (403, {"X-Error-Message": f"no rights for {TOKEN}"}, "does not let this account read the repository"),
    (404, {"X-Error-Code": "RepoNotFound"}, "no such repository"),
    (404, {"X-Error-Code": "RevisionNotFound"}, "no such revision"),
    (403, {"X-Error-Code": "GatedRepo"}, "accepted their terms.*hf auth login"),
    (429, {}, "no more requests for now"),
    (503, {}, "error of its own"),
]


@pytest.mark.parametrize(("status", "headers", "said"), ANSWERS)
def test_each_answer_that_is_none_is_one_sentence(
    server: StandIn, status: int, headers: dict[str, str], said: str
) -> None:
    server.fail = (status, headers)
    with pytest.raises(HubError, match=said) as refused:
        hub.describe(HubReference("ines/keeper"))
    assert TOKEN not in refused.value.message
    assert "\n" not in refused.value.message


def test_a_search_that_is_refused_is_not_tried_for_half_a_minute(server: StandIn) -> None:
    server.fail = (503, {})
    with pytest.raises(HubError, match="error of its own"):
        hub.search("x")
    assert len(server.log) == 1


def test_a_gated_repository_is_listed_and_not_fetched(server: StandIn, tmp_path: Path) -> None:
    server.add("ines/keeper", files_of(keeper(), tmp_path / "1"), gated=True)
    listing = hub.describe(HubReference("ines/keeper"))
    assert listing.gated
    with pytest.raises(HubError, match="accept them on the repository's page"):
        hub.fetch(listing)


def test_a_disk_that_refuses_is_no_fault_of_the_hub(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("max/x", {"prompt.npy": good()})
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(StorageError, match="could not be written"):
        hub.fetch(hub.describe(HubReference("max/x")))


def test_a_hub_that_is_not_there_or_switched_off(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        for ask in (hub.search, lambda: hub.describe(HubReference("ines/keeper"))):
            with pytest.raises(HubError, match="cannot be reached"):
                ask()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for ask in (hub.search, lambda: hub.describe(HubReference("ines/keeper"))):
        with pytest.raises(HubError, match=r"switched off \(HF_HUB_OFFLINE\)"):
            ask()
