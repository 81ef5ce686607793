"""The default library and the soft prompts that come with Sordino."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sordino import formats
from sordino.library import library, packaged
from sordino.library.library import Library
from tests.prompt_files import drop, names


@pytest.fixture
def three_packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = tmp_path / "package" / "data" / "prompts"
    prompts.mkdir(parents=True)
    for number, name in enumerate(("one", "two", "three")):
        drop(prompts / f"{name}.zip", seed=number)
    monkeypatch.setattr("sordino.library.packaged.resources.files", lambda package: tmp_path / "package")


@pytest.mark.usefixtures("three_packaged")
def test_an_empty_library_is_seeded_once(tmp_path: Path) -> None:
    home = tmp_path / "data" / "soft_prompts"
    assert len(packaged.seed(home)) == 3
    lib = Library([home])
    assert names(lib) == ["one", "three", "two"]
    for name in names(lib):
        lib.remove(name)
    assert packaged.seed(home) == []
    assert lib.scan() == []


@pytest.mark.usefixtures("three_packaged")
@pytest.mark.parametrize("writes", range(5))
def test_seeding_that_was_killed_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    write, left = packaged.write_bytes, iter(range(writes))

    def killed(path: Path, data: bytes) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(packaged, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            packaged.seed(folder)
    packaged.seed(folder)
    lib = Library([folder])
    assert names(lib) == ["one", "three", "two"]
    lib.remove("two")
    assert packaged.seed(folder) == []
    assert names(lib) == ["one", "three"]


@pytest.mark.usefixtures("three_packaged")
def test_a_library_with_files_is_not_seeded(folder: Path) -> None:
    drop(folder / "mine.zip")
    assert packaged.seed(folder) == []
    assert names(Library([folder])) == ["mine"]


def test_with_nothing_packaged_nothing_is_seeded_or_marked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sordino.library.packaged.resources.files", lambda package: tmp_path)
    assert packaged.seed(folder) == []
    assert list(folder.iterdir()) == []


def test_packaged_prompts_are_good_files(tmp_path: Path) -> None:
    packaged.seed(tmp_path / "home")
    for entry in Library([tmp_path / "home"]).scan():
        assert not entry.error
        formats.read(entry.path)


@pytest.mark.usefixtures("three_packaged")
def test_named_folders_win_over_the_default_which_alone_is_seeded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sordino.library.library.platformdirs.user_data_dir", lambda *_, **__: str(tmp_path / "user"))
    monkeypatch.setenv("SORDINO_LIBRARY", os.pathsep.join([str(folder), str(tmp_path / "second")]))
    assert library.default_folders()[0] == folder
    assert library.open_library().folders == (folder, tmp_path / "second")
    assert library.open_library([tmp_path]).folders == (tmp_path,)
    assert list(folder.iterdir()) == []
    monkeypatch.delenv("SORDINO_LIBRARY")
    assert names(library.open_library()) == ["one", "three", "two"]


@pytest.mark.usefixtures("three_packaged")
def test_a_home_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SORDINO_LIBRARY")
    (tmp_path / "file").write_text("where the folder should go")
    monkeypatch.setattr("sordino.library.library.platformdirs.user_data_dir", lambda *_, **__: str(tmp_path / "file"))
    assert library.open_library().scan() == []
