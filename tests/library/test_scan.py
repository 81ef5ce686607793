"""What a library finds in its folders, while people drop files into them."""

from __future__ import annotations

import os
import shutil
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sordino import formats
from sordino.errors import NotInLibrary
from sordino.library.library import Library
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.prompt_files import drop, matrix, names
from tests.waiting import WAIT


def test_entries_say_what_the_header_says(folder: Path) -> None:
    drop(folder / "gothic.zip", author="A. N. Other", description="Fog.")
    (entry,) = Library([folder]).scan()
    assert (entry.name, entry.path, entry.n_tokens, entry.d_model) == ("gothic", folder / "gothic.zip", 4, 8)
    assert (entry.metadata.author, entry.metadata.description) == ("A. N. Other", "Fog.")
    assert (entry.format, entry.error) == ("kobold", "")


def test_a_broken_file_is_an_entry_with_one_line_and_harms_nothing(folder: Path) -> None:
    drop(folder / "good.zip")
    (folder / "empty.zip").write_bytes(b"")
    (folder / "text.zip").write_text("this is not a zip")
    entries = {entry.name: entry for entry in Library([folder]).scan()}
    assert set(entries) == {"good", "empty", "text"}
    assert not entries["good"].error
    for name in ("empty", "text"):
        assert entries[name].error
        assert "\n" not in entries[name].error
        assert str(folder) not in entries[name].error


def test_a_half_copied_file_is_looked_at_again(folder: Path) -> None:
    whole = drop(folder / "v.zip").read_bytes()
    times = (folder / "v.zip").stat()
    lib = Library([folder])
    # As Windows copies: the size is final from the start, the content is not, and the time is set to the source's.
    with open(folder / "v.zip", "r+b") as file:
        file.seek(len(whole) // 2)
        file.write(bytes(len(whole) - len(whole) // 2))
    os.utime(folder / "v.zip", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert lib.scan()[0].error
    with open(folder / "v.zip", "r+b") as file:
        file.write(whole)
    os.utime(folder / "v.zip", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not lib.scan()[0].error


def test_a_file_that_vanishes_during_the_scan_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        drop(folder / f"{name}.zip")
    peek = formats.peek

    def vanishing(path: Path) -> formats.Peek:
        (folder / "b.zip").unlink(missing_ok=True)
        return peek(path)

    monkeypatch.setattr(formats, "peek", vanishing)
    assert names(Library([folder])) == ["a", "c"]


def test_scans_go_on_while_files_come_and_go(folder: Path) -> None:
    lib, stop = Library([folder]), threading.Event()
    whole = drop(folder.parent / "whole.zip").read_bytes()

    def people() -> None:
        number = 0
        while not stop.is_set():
            number = (number + 1) % 5
            (folder / f"p{number}.zip").write_bytes(whole[: len(whole) // 2])
            time.sleep(0.002)
            (folder / f"p{number}.zip").write_bytes(whole)
            (folder / f"p{(number + 2) % 5}.zip").unlink(missing_ok=True)

    dropping = threading.Thread(target=people)
    dropping.start()
    try:
        deadline, scans = time.monotonic() + WAIT, []
        while len(scans) < 50 or not any(entry.error for entries in scans for entry in entries):
            assert time.monotonic() < deadline, "no file was met half-copied"
            scans.append(lib.scan())
    finally:
        stop.set()
        dropping.join()
    assert any(scans)
    for entry in lib.scan():
        assert (entry.n_tokens, entry.error) == (4, "")


def test_unchanged_files_are_not_opened_again_and_changed_ones_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        drop(folder / f"{name}.zip", description="old")
    lib, looked, peek = Library([folder]), [], formats.peek
    monkeypatch.setattr(formats, "peek", lambda path: looked.append(path.name) or peek(path))
    lib.scan()
    assert looked == ["a.zip", "b.zip"]
    looked.clear()
    times = (folder / "a.zip").stat()
    # The same size and time: only the inode says that this is another file.
    (folder / "elsewhere").mkdir()
    other = drop(folder / "elsewhere" / "a.zip", description="new")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert other.stat().st_size == times.st_size
    os.replace(other, folder / "a.zip")
    assert [entry.metadata.description for entry in lib.scan()] == ["new", "old"]
    assert looked == ["a.zip"]


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that a library opens."""
    names, peek = [], formats.peek
    monkeypatch.setattr(formats, "peek", lambda path: names.append(path.name) or peek(path))
    return names


def test_a_broken_file_is_read_once(folder: Path, looked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "broken.zip").write_bytes(b"PK\x03\x04 and nothing that a zip holds")
    lib = Library([folder])
    # It may be half-copied: at first it is read at each scan.
    assert [lib.scan()[0].error for _ in range(2)] == [lib.scan()[0].error] * 2
    assert looked == ["broken.zip"] * 3
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    looked.clear()
    assert len({lib.scan()[0].error for _ in range(5)}) == 1
    assert looked == ["broken.zip"]
    drop(folder / "broken.zip")
    assert not lib.scan()[0].error


def test_what_the_disk_refuses_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(folder / "v.zip")
    lib, opens, now = Library([folder]), Path.open, time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)

    def held(path: Path, *given: object, **named: object) -> object:
        raise PermissionError(13, "used by another process")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", held)
        assert "used by another process" in lib.scan()[0].error
    assert Path.open is opens
    assert not lib.scan()[0].error


def test_unpacked_prompts_are_entries_and_other_things_are_not(folder: Path) -> None:
    with zipfile.ZipFile(drop(folder / "packed.zip")) as archive:
        archive.extractall(folder / "unpacked")
        archive.extractall(folder / "deeper" / "packed")
    (folder / "stories" / "drafts").mkdir(parents=True)
    (folder / "stories" / "one.txt").write_text("Once.")
    (folder / "put soft prompts here.txt").write_text("")
    (folder / "._packed.zip").write_bytes(b"what macOS leaves on foreign drives")
    shutil.copy(folder / "packed.zip", folder / "SHOUTED.ZIP")
    found = {entry.name: entry for entry in Library([folder]).scan()}
    assert set(found) == {"packed", "unpacked", "deeper", "SHOUTED"}
    assert not any(entry.error for entry in found.values())
    assert formats.read(found["deeper"].path).content_hash == SoftPrompt(matrix()).content_hash


def test_files_of_other_kinds_are_told_of(folder: Path) -> None:
    np.save(folder / "bare.npy", matrix())
    drop(folder / "v.zip")
    lib = Library([folder])
    assert names(lib) == ["v"]
    assert lib.other_files() == [folder / "bare.npy"]


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    lib = Library([tmp_path / "unmounted"])
    assert lib.scan() == []
    assert lib.missing_folders() == [tmp_path / "unmounted"]
    with pytest.raises(
        NotInLibrary, match=r"^v: .*; check the spelling.* \(the library folder .*unmounted does not exist\)$"
    ):
        lib.entry("v")


def test_a_misspelt_name_is_not_put_down_to_a_folder_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    drop(folder / "keeper.zip")
    (tmp_path / "file").write_text("where the second folder should be")
    for second, fault in (("unmounted", "does not exist"), ("file", "is a file, not a folder")):
        lib = Library([folder, tmp_path / second])
        with pytest.raises(
            NotInLibrary, match=rf"^keper: .*; did you mean keeper\? \(the library folder .*{second} {fault}\)$"
        ):
            lib.entry("keper")


def test_a_thousand_files_take_less_than_half_a_second(
    folder: Path, looked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = drop(folder / "p0.zip", description="x" * 300)
    known = Metadata(
        name="v", base=BaseRef(id="org/model", d_model=8), heldout={"nll": [4.1] * 20}, tags=("sea", "log")
    )
    formats.write(SoftPrompt(matrix(), known), folder / "p1.zip")
    for number in range(2, 1000):
        shutil.copy((theirs, folder / "p1.zip")[number % 2], folder / f"p{number}.zip")
    # A fast machine is here before the files are settled, and would read them all again.
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    Library([folder]).scan()
    first, again = [], []
    for _ in range(3):
        looked.clear()
        # A fresh process has no headers in memory, but the system has the files.
        lib = Library([folder])
        # Time of this process: the neighbours on the machine are not the scan's doing.
        start = time.process_time()
        assert len(lib.scan()) == 1000
        first.append(time.process_time() - start)
        assert len(looked) == 1000
        start = time.process_time()
        assert len(lib.scan()) == 1000
        again.append(time.process_time() - start)
        assert len(looked) == 1000, "headers in memory are not read again"
    assert min(first) < 0.5, f"{first} s, and {again} s with the headers in memory"
    assert min(again) < 0.1, again
