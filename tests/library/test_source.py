"""Sources of prompt files through the same checks, and one in memory through the commands of the library."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sordino import formats
from sordino.errors import BadInput, NotInLibrary
from sordino.library.files import FolderSource
from sordino.library.library import Library
from sordino.library.source import Item
from tests.cli.commands import ok, refused
from tests.library.source_conformance import check
from tests.prompt_files import drop, names


@dataclass(eq=False)
class MemorySource:
    """Files as bytes, each at several revisions of which the last one is listed, and a folder for those that are opened."""

    cache: Path
    files: dict[str, list[bytes]] = field(default_factory=dict)
    name: str = "memory"

    def list(self) -> list[Item]:
        return [self.item(label, len(versions) - 1) for label, versions in sorted(self.files.items())]

    def item(self, label: str, revision: int) -> Item:
        return Item(label, self.cache / str(revision) / f"{label}.zip", revision)

    def describe(self, item: Item) -> formats.Peek:
        return formats.peek(self.open(item))

    def open(self, item: Item) -> Path:
        versions = self.files.get(item.path.stem, [])
        assert isinstance(item.revision, int)
        if not 0 <= item.revision < len(versions):
            raise NotInLibrary("this revision is gone", where=item.path.stem)
        item.path.parent.mkdir(parents=True, exist_ok=True)
        if not item.path.exists():
            item.path.write_bytes(versions[item.revision])
        return item.path


@pytest.fixture
def memory(tmp_path: Path) -> MemorySource:
    def made(seed: int) -> bytes:
        return drop(tmp_path / "made.zip", seed=seed, description=f"number {seed}").read_bytes()

    source = MemorySource(tmp_path / "cache", {"gothic": [made(1), made(2)], "noir": [made(3)], "broken": [b"PK"]})
    (tmp_path / "made.zip").unlink()
    return source


@pytest.fixture
def folder(folder: Path) -> Path:
    drop(folder / "gothic.zip", seed=9)
    return folder


def test_sources_conform(memory: MemorySource, folder: Path) -> None:
    (folder / "broken.zip").write_bytes(b"PK")
    with zipfile.ZipFile(folder / "gothic.zip") as archive:
        archive.extractall(folder / "unpacked")
    check(FolderSource(folder))
    check(memory)


def test_a_source_is_opened_at_a_revision(memory: MemorySource) -> None:
    old, new = (formats.read(memory.open(memory.item("gothic", revision))) for revision in (0, 1))
    assert (old.metadata.description, new.metadata.description) == ("number 1", "number 2")
    with pytest.raises(NotInLibrary):
        memory.open(memory.item("gothic", 2))


def test_a_library_lists_a_source_behind_its_folders(memory: MemorySource, folder: Path) -> None:
    library = Library([folder], [memory])
    assert names(library) == ["gothic", "broken", "gothic@memory", "noir"]
    assert library.entry("broken").error
    assert formats.read(library.resolve("gothic@memory")).metadata.description == "number 2"
    memory.files["gothic"].append(memory.files["noir"][0])
    assert formats.read(library.resolve("gothic@memory")).metadata.description == "number 3"
    with pytest.raises(BadInput, match="in no folder"):
        library.remove("noir")
    gone = library.entry("noir")
    del memory.files["noir"]
    with pytest.raises(NotInLibrary):
        library.open(gone)


def test_the_commands_take_what_a_source_has(
    memory: MemorySource, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sordino.cli.options.open_library", lambda folders: Library([folder], [memory]))
    listed = json.loads(ok("list", "--json"))
    assert [entry["name"] for entry in listed] == ["gothic", "broken", "gothic@memory", "noir"]
    assert "number 2" in ok("show", "gothic@memory")
    assert "Wrote" in ok("convert", "noir", folder / "copy.npy")
    assert "Installed mine" in ok("install", "noir", "--name", "mine")
    assert formats.read(folder / "mine.zip").metadata.description == "number 3"
    assert "in no folder" in refused("remove", "noir", "--yes")
