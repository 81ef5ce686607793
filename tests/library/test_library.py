"""What a library does to its files."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sordino import formats
from sordino.errors import BadInput, NameTaken, NotInLibrary, SoftPromptFileError, StorageError
from sordino.library import editing, trash
from sordino.library.library import Library
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.prompt_files import drop, matrix, names


def test_install_reads_any_format_and_writes_a_native_zip(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "voice.npy", matrix())
    entry = Library([folder]).add(formats.read_any(tmp_path / "voice.npy"), name="voice")
    assert (entry.name, entry.path, entry.error, entry.format) == ("voice", folder / "voice.zip", "", "kobold")
    assert entry.metadata.name == "voice"
    assert zipfile.is_zipfile(folder / "voice.zip")
    assert formats.read(folder / "voice.zip").content_hash == SoftPrompt(matrix()).content_hash


def test_install_never_overwrites_another_prompt_unasked(folder: Path) -> None:
    lib = Library([folder])
    lib.add(SoftPrompt(matrix(1)), name="v")
    before = (folder / "v.zip").read_bytes()
    for name in ("v", "V"):
        with pytest.raises(BadInput, match="--replace"):
            lib.add(SoftPrompt(matrix(2)), name=name)
    assert (folder / "v.zip").read_bytes() == before
    lib.add(SoftPrompt(matrix(2)), name="v", replace=True)
    assert formats.read(folder / "v.zip").content_hash == SoftPrompt(matrix(2)).content_hash
    assert [item.name for item in folder.iterdir()] == ["v.zip"]


def test_replace_takes_the_name_as_it_is_spelt_before_another_spelling(folder: Path) -> None:
    for number, name in enumerate(("VOICE", "Voice", "voice")):
        formats.write(SoftPrompt(matrix(number)), folder / f"{name}.zip", force=True)
    if len(list(folder.iterdir())) < 3:
        pytest.skip("this drive sees no case")
    assert Library([folder]).add(SoftPrompt(matrix(5)), name="voice", replace=True).path == folder / "voice.zip"
    assert formats.read(folder / "Voice.zip").content_hash == SoftPrompt(matrix(1)).content_hash


def test_a_folder_that_is_given_twice_is_one(folder: Path) -> None:
    drop(folder / "v.zip")
    assert [entry.name for entry in Library([folder, folder]).scan()] == ["v"]


def test_the_same_soft_prompt_is_not_written_again(folder: Path) -> None:
    lib = Library([folder])
    lib.add(SoftPrompt(matrix(1)), name="v")
    before = (folder / "v.zip").stat()
    lib.add(SoftPrompt(matrix(1)), name="v")
    after = (folder / "v.zip").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_broken_file_of_that_name_is_not_overwritten_unasked(folder: Path) -> None:
    (folder / "v.zip").write_bytes(b"half a soft prompt, or somebody's holiday pictures")
    with pytest.raises(BadInput, match="--replace"):
        Library([folder]).add(SoftPrompt(matrix()), name="v")
    assert (folder / "v.zip").read_bytes().startswith(b"half")


def test_bad_input_is_not_installed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(SoftPromptFileError):
        Library([folder]).add(formats.read_any(tmp_path / "bad.zip"), name="bad")
    assert list(folder.iterdir()) == []


def test_twin_finds_the_same_matrix_under_another_name(folder: Path) -> None:
    drop(folder / "a.zip", seed=1)
    drop(folder / "b.zip", seed=2)
    lib = Library([folder])
    twin = lib.twin(SoftPrompt(matrix(2)))
    assert twin is not None
    assert twin.name == "b"
    assert lib.twin(SoftPrompt(matrix(3))) is None


def test_removed_files_go_to_the_trash_and_none_is_lost(folder: Path) -> None:
    lib = Library([folder])
    places = []
    for seed in (1, 2):
        drop(folder / "v.zip", seed=seed)
        places.append(lib.remove("v"))
        assert lib.scan() == []
    assert [formats.read(place).content_hash for place in places] == [
        SoftPrompt(matrix(1)).content_hash,
        SoftPrompt(matrix(2)).content_hash,
    ]
    with pytest.raises(NotInLibrary):
        lib.remove("v")


def test_what_another_program_puts_into_the_trash_meanwhile_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder / ".trash" / "v.zip"

    def after_another(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any) -> Any:
            if place in given and not place.exists():
                place.write_bytes(b"another's")
            return call(*given)

        return wrapped

    drop(folder / "v.zip")
    for call in ("rename", "open", "link"):
        monkeypatch.setattr(os, call, after_another(getattr(os, call)))
    moved = Library([folder]).remove("v")
    assert place.read_bytes() == b"another's"
    assert formats.read(moved).n_tokens == 4


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_in_the_trash_is_not_replaced(folder: Path) -> None:
    (folder / ".trash").mkdir()
    (folder / ".trash" / "v.zip").symlink_to(folder / "nowhere")
    (folder / ".trash" / "twice").symlink_to(folder / "nowhere")
    with zipfile.ZipFile(drop(folder / "v.zip")) as archive:
        archive.extractall(folder / "twice")
    lib = Library([folder])
    for name in ("v", "twice"):
        lib.remove(name)
    assert (folder / ".trash" / "v.zip").is_symlink()
    assert (folder / ".trash" / "twice").is_symlink()
    assert len(list((folder / ".trash").iterdir())) == 4


def test_removing_an_unpacked_prompt_takes_the_whole_folder(folder: Path) -> None:
    with zipfile.ZipFile(drop(folder / "v.zip")) as archive:
        archive.extractall(folder / "twice" / "v")
    lib = Library([folder])
    assert lib.remove("twice") == folder / ".trash" / "twice"
    assert (folder / ".trash" / "twice" / "v" / "tensor.npy").is_file()
    assert names(lib) == ["v"]


def test_what_was_removed_is_put_back_where_it_was(folder: Path) -> None:
    lib = Library([folder])
    trashed = []
    for seed in (1, 2):
        drop(folder / "v.zip", seed=seed)
        trashed.append(lib.remove("v").name)
    # The second has another name in the trash, and its own again here.
    assert lib.restore(trashed[1]).name == "v"
    assert formats.read(folder / "v.zip").content_hash == SoftPrompt(matrix(2)).content_hash
    # Never over another.
    with pytest.raises(NameTaken, match=r"v\.zip"):
        lib.restore(trashed[0])
    assert (folder / ".trash" / trashed[0]).is_file()
    (folder / "v.zip").unlink()
    assert lib.restore(trashed[0]).name == "v"
    assert formats.read(folder / "v.zip").content_hash == SoftPrompt(matrix(1)).content_hash
    for unknown in ("v.zip", "nobody.zip", "../v.zip", ""):
        with pytest.raises(NotInLibrary, match="the trash has no file"):
            lib.restore(unknown)


def test_a_folder_and_a_name_that_only_looks_renamed_are_put_back(folder: Path) -> None:
    with zipfile.ZipFile(drop(folder / "v-0123abcd.mix.zip")) as archive:
        archive.extractall(folder / "twice" / "v")
    lib = Library([folder])
    for path in (folder / "v-0123abcd.mix.zip", folder / "twice"):
        place = trash.discard(path)
        lib.restore(place.name)
        assert path.exists()
    assert list((folder / ".trash").iterdir()) == []


def test_a_refused_removal_is_our_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(folder / "v.zip")

    def held_open(source: object, target: object) -> None:
        raise PermissionError(13, "used by another process")

    for call in ("rename", "replace"):
        monkeypatch.setattr(os, call, held_open)
    with pytest.raises(StorageError, match="still there"):
        Library([folder]).remove("v")
    assert (folder / "v.zip").is_file()
    assert not list((folder / ".trash").iterdir())


def test_edit_changes_metadata_and_nothing_else(folder: Path) -> None:
    known = Metadata(
        name="V",
        supported=("org/model",),
        base=BaseRef(id="org/model", d_model=8, fingerprint="f" * 64),
        placement="after_bos",
        training={"steps": 20},
        heldout={"nll": 4.25},
        samples=({"prompt": "a", "with": "b", "without": "c"},),
    )
    prompt = SoftPrompt(matrix(), known)
    path = Library([folder]).add(prompt, name="v").path
    edited = editing.edit(path, {"author": "Me", "tags": ("sea", "log"), "rating": "mature"})
    there = formats.read(path)
    assert there.content_hash == edited.content_hash == prompt.content_hash
    assert there.metadata == prompt.with_metadata(author="Me", tags=("sea", "log"), rating="mature").metadata
    assert [item.name for item in folder.iterdir()] == ["v.zip"]


def test_edit_refuses_what_cannot_hold_the_fields_and_what_is_not_allowed(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", matrix())
    with pytest.raises(BadInput, match=r"only a native \.zip"):
        editing.edit(tmp_path / "v.npy", {"author": "Me"})
    path = drop(folder / "v.zip")
    before = path.read_bytes()
    with pytest.raises(BadInput, match="rating"):
        editing.edit(path, {"rating": "cosy"})
    assert path.read_bytes() == before
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", "how it was made")
    before = path.read_bytes()
    with pytest.raises(BadInput, match=r"README\.txt"):
        editing.edit(path, {"author": "Me"})
    assert path.read_bytes() == before


def test_a_file_held_open_on_windows_survives_an_edit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = drop(folder / "v.zip")
    before = path.read_bytes()

    def held_open(source: object, target: object) -> None:
        raise PermissionError(13, "used by another process")

    monkeypatch.setattr(os, "replace", held_open)
    with pytest.raises(StorageError, match="the old one is intact"):
        editing.edit(path, {"author": "Me"})
    assert path.read_bytes() == before
    assert [item.name for item in folder.iterdir()] == ["v.zip"]


def test_the_first_install_makes_the_folder_but_not_a_drive(tmp_path: Path) -> None:
    Library([tmp_path / "new"]).add(SoftPrompt(matrix()), name="v")
    assert (tmp_path / "new" / "v.zip").is_file()
    with pytest.raises(StorageError, match="could not be made"):
        Library([tmp_path / "unmounted" / "softprompts"]).add(SoftPrompt(matrix()), name="v")
    assert not (tmp_path / "unmounted").exists()
