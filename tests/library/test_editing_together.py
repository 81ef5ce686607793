"""Two that change one file: whoever comes later has the other's change, and none is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sordino import formats
from sordino.errors import BadInput
from sordino.library import editing
from sordino.library.library import Library
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.prompt_files import drop, matrix

WAIT = 20.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return drop(tmp_path / "v.zip", seed=1)


def while_it_is_edited(
    path: Path, monkeypatch: pytest.MonkeyPatch, other: Callable[[], Any], *, waits: bool = True
) -> Future[Any]:
    """`other`, begun when an edit of another description has read the file and has not written it. waits: for the edit's end."""
    read, changed = threading.Event(), editing.with_attention
    mine = threading.get_ident()

    def slow(*given: Any) -> Any:
        if threading.get_ident() != mine and not read.is_set():
            read.set()
            # Without a lock the other one is through by now.
            done.wait(0.3 if waits else WAIT)
        return changed(*given)

    done = threading.Event()
    monkeypatch.setattr(editing, "with_attention", slow)
    with ThreadPoolExecutor(1) as pool:
        edited = pool.submit(editing.edit, path, {"description": "edited"})
        assert read.wait(WAIT)
        try:
            other()
        finally:
            done.set()
    return edited


def test_a_replacement_is_not_lost_to_an_edit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = SoftPrompt(matrix(2), Metadata(name="new"))
    edited = while_it_is_edited(path, monkeypatch, lambda: Library([path.parent]).add(new, name="v", replace=True))
    assert edited.result().metadata.description == "edited"
    there = formats.read(path)
    assert (there.content_hash, there.metadata.name) == (new.content_hash, "new")


def test_two_edits_are_both_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edited = while_it_is_edited(path, monkeypatch, lambda: editing.edit(path, {"author": "Me"}))
    edited.result()
    known = formats.read(path).metadata
    assert (known.author, known.description) == ("Me", "edited")


def test_what_is_removed_meanwhile_does_not_come_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edited = while_it_is_edited(path, monkeypatch, lambda: Library([path.parent]).remove("v"))
    edited.result()
    assert not path.exists()
    assert formats.read(path.parent / ".trash" / "v.zip").metadata.description == "edited"


@pytest.mark.parametrize("how", ["replaced", "written over", "removed"])
def test_what_another_program_does_meanwhile_stays(path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    other = drop(path.parent / "other.zip", seed=2)
    content = other.read_bytes()
    actions: dict[str, Callable[[], object]] = {
        "replaced": lambda: other.replace(path),
        "written over": lambda: path.write_bytes(content),
        "removed": path.unlink,
    }
    edited = while_it_is_edited(path, monkeypatch, actions[how], waits=False)
    with pytest.raises(BadInput, match="another program changed the file meanwhile"):
        edited.result()
    assert not path.exists() if how == "removed" else path.read_bytes() == content
