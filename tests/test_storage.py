"""A write leaves the old content or the new, whole, whatever stops it."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sordino import storage
from sordino.errors import BadInput, StorageError
from sordino.storage import atomic_file, atomic_folder, write_bytes

posix_only = pytest.mark.skipif(os.name != "posix", reason="modes, links and signals as POSIX has them")


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_a_new_file_and_a_replaced_one_leave_nothing_else_behind(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def write_half(path: Path, failure: BaseException) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise failure


def write_half_a_folder(path: Path, failure: BaseException) -> None:
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("half")
        raise failure


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failing_body_leaves_the_old_file(tmp_path: Path, failure: type[BaseException]) -> None:
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(failure):
        write_half(tmp_path / "a", failure())
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_refusing_disk_is_our_error_and_leaves_the_old_file(tmp_path: Path, code: int) -> None:
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(StorageError, match="the old one is intact") as caught:
        write_half(tmp_path / "a", OSError(code, os.strerror(code)))
    assert os.strerror(code) in caught.value.message
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_file_held_open_on_windows_is_our_error_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(tmp_path / "a", b"old")

    def held_open(source: object, target: object) -> None:
        raise PermissionError(errno.EACCES, "The process cannot access the file because it is being used")

    monkeypatch.setattr(os, "replace", held_open)
    with pytest.raises(StorageError, match=r"the old one is intact.*hold it open"):
        write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_disk_that_fills_at_the_flush_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(tmp_path / "a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_drive_without_fsync_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unknown)
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_place_that_cannot_hold_a_file_is_refused_before_the_body_runs(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for place, wanted in ((tmp_path / "folder", "got a folder"), (tmp_path / "no" / "a", "does not exist")):
        with pytest.raises(BadInput, match=wanted), atomic_file(place):
            pytest.fail("the body ran")
    assert names(tmp_path) == ["folder"]


@posix_only
def test_devices_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="a device or a pipe"):
        write_bytes(tmp_path / "pipe", b"")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@posix_only
def test_modes_are_the_users_and_links_are_followed(tmp_path: Path) -> None:
    old_mask = os.umask(0o022)
    try:
        write_bytes(tmp_path / "new", b"1")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o644
        (tmp_path / "new").chmod(0o440)
        (tmp_path / "link").symlink_to("new")
        write_bytes(tmp_path / "link", b"2")
        with atomic_folder(tmp_path / "model") as folder:
            # As the library safetensors writes a file.
            (folder / "weights").touch(0o600)
            (folder / "program").touch(0o755)
        modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in (tmp_path / "model").iterdir()}
        assert modes == {"weights": 0o644, "program": 0o755}
    finally:
        os.umask(old_mask)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "new").read_bytes() == b"2"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o440


def left_behind(folder: Path, number: int, age: float) -> str:
    path = folder / f".sordino-{number:016x}.tmp"
    path.write_bytes(b"half")
    then = time.time() - age
    os.utime(path, (then, then))
    return path.name


@posix_only
def test_what_killed_processes_left_is_swept_by_the_next_write(tmp_path: Path) -> None:
    left_behind(tmp_path, 0, age=1)
    (tmp_path / f".sordino-{'1' * 16}.tmp").mkdir()
    (tmp_path / f".sordino-{'1' * 16}.tmp" / "weights").write_bytes(b"half")
    (tmp_path / f".sordino-{'2' * 16}.tmp").symlink_to(tmp_path)
    write_bytes(tmp_path / "a", b"new")
    assert names(tmp_path) == [f".sordino-{'2' * 16}.tmp", "a"]


def test_what_another_process_still_writes_to_is_not_swept(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as temporary, atomic_folder(tmp_path / "f") as folder:
        temporary.write_bytes(b"1")
        (folder / "x").write_bytes(b"2")
        for path in (temporary, folder):
            os.utime(path, (1, 1) if os.name == "posix" else None)
        code = "import sys; from pathlib import Path; from sordino.storage import write_bytes; write_bytes(Path(sys.argv[1]), b'3')"
        source = str(Path(storage.__file__).parents[1])
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "b")], env={**os.environ, "PYTHONPATH": source}, check=True
        )
    assert [(tmp_path / name).read_bytes() for name in ("a", "f/x", "b")] == [b"1", b"2", b"3"]


def test_where_there_are_no_locks_it_is_swept_after_a_day_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_locked", lambda path: None)
    left_behind(tmp_path, 0, age=2 * 86400)
    young = left_behind(tmp_path, 1, age=3600)
    write_bytes(tmp_path / "a", b"new")
    assert names(tmp_path) == [young, "a"]


def body_raises(path: Path, error: Exception, *, folder: bool) -> None:
    with atomic_folder(path) if folder else atomic_file(path):
        raise error


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/somewhere/texts.txt"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "weights.safetensors"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        TimeoutError("the hub does not answer"),
        ValueError("No such file or directory (os error 2)"),
    ],
)
def test_what_the_body_meets_elsewhere_is_not_called_a_failed_write(
    tmp_path: Path, error: Exception, *, folder: bool
) -> None:
    with pytest.raises(type(error)) as caught:
        body_raises(tmp_path / "a", error, folder=folder)
    assert caught.value is error
    assert names(tmp_path) == []


@pytest.mark.parametrize("folder", [True, False])
def test_a_full_disk_is_known_in_the_words_of_libraries_in_rust(tmp_path: Path, *, folder: bool) -> None:
    error = Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(StorageError, match=r"could not be written \(No space left on device\)"):
        body_raises(tmp_path / "a", error, folder=folder)


def folder_of(path: Path, **files: str) -> None:
    with atomic_folder(path) as temporary:
        for name, text in files.items():
            (temporary / name).write_text(text)


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder_of(tmp_path / "f", a="1")
    folder_of(tmp_path / "f", a="2", b="2")
    assert {file.name: file.read_text() for file in (tmp_path / "f").iterdir()} == {"a": "2", "b": "2"}
    assert names(tmp_path) == ["f"]


def test_a_folder_whose_place_was_empty_at_a_kill_is_put_back_by_the_next_write(tmp_path: Path) -> None:
    folder_of(tmp_path / "f", a="old")
    os.rename(tmp_path / "f", tmp_path / f"f.old-{'0' * 16}")
    with pytest.raises(ValueError, match="stop"):
        write_half_a_folder(tmp_path / "f", ValueError("stop"))
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f" / "a").read_text() == "old"


def test_an_old_folder_that_a_kill_left_beside_the_new_one_goes(tmp_path: Path) -> None:
    folder_of(tmp_path / "f", a="new")
    for number, file in ((0, "a"), (1, "thesis")):
        folder_of(tmp_path / f"f.old-{number:016x}", **{file: "old"})
    folder_of(tmp_path / "f", a="newer")
    # What the new one does not hold is nobody's to delete.
    assert names(tmp_path) == ["f", f"f.old-{1:016x}"]


def test_a_failing_body_leaves_the_old_folder_or_none(tmp_path: Path) -> None:
    folder_of(tmp_path / "f", a="1")
    for target in ("f", "g"):
        with pytest.raises(ValueError, match="stop"):
            write_half_a_folder(tmp_path / target, ValueError("stop"))
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f" / "a").read_text() == "1"


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "documents" / "deep").mkdir(parents=True)
    (tmp_path / "documents" / "deep" / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match=r"other files.*thesis\.txt"):
        folder_of(tmp_path / "documents", a="1")
    assert (tmp_path / "documents" / "deep" / "thesis.txt").read_text() == "years of work"
    assert names(tmp_path) == ["documents"]


def test_a_second_rename_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "f", a="1")
    rename, calls = os.rename, []

    def failing_once(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise PermissionError(errno.EACCES, "held open")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing_once)
    with pytest.raises(StorageError, match="the old one is intact"):
        folder_of(tmp_path / "f", a="2")
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f" / "a").read_text() == "1"


# Each content is one byte, repeated: a torn or mixed file shows.
FILE_WRITER = """
import sys
from pathlib import Path
from sordino.storage import atomic_file
path, value = Path(sys.argv[1]), 0
print("ready", flush=True)
while True:
    value = (value + 1) % 256
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        for _ in range(16):
            file.write(bytes([value]) * 4096)
"""
FOLDER_WRITER = """
import sys
from pathlib import Path
from sordino.storage import atomic_folder
path, value = Path(sys.argv[1]), 0
print("ready", flush=True)
while True:
    value = (value + 1) % 256
    with atomic_folder(path) as temporary:
        for name in "abc":
            (temporary / name).write_bytes(bytes([value]) * 4096)
"""


def kill_in_the_middle(program: str, target: Path, delay: float) -> None:
    source = str(Path(storage.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", program, str(target)], env={**os.environ, "PYTHONPATH": source}, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)


@posix_only
def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    target, dice = tmp_path / "a", random.Random(0)
    target.write_bytes(b"\xff" * 16 * 4096)
    torn_temporaries = 0
    for _ in range(20):
        kill_in_the_middle(FILE_WRITER, target, dice.uniform(0, 0.02))
        content = target.read_bytes()
        assert len(content) == 16 * 4096
        assert len(set(content)) == 1
        torn_temporaries += len(names(tmp_path)) - 1
        assert len(names(tmp_path)) <= 2, "what one kill leaves the next process cleans"
    # Without a kill in the middle of a write, the test would have shown nothing.
    assert torn_temporaries > 0


@posix_only
def test_a_killed_writer_leaves_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    target, dice, torn = tmp_path / "f", random.Random(1), 0
    folder_of(target, a="x" * 4096, b="x" * 4096, c="x" * 4096)
    for _ in range(8):
        kill_in_the_middle(FOLDER_WRITER, target, dice.uniform(0, 0.02))
        # Killed between the two renames: the old folder is beside it.
        (place,) = [target] if target.exists() else list(tmp_path.glob("f.old-*"))
        contents = {(place / name).read_bytes() for name in "abc"}
        assert len(contents) == 1
        assert len(contents.pop()) == 4096
        torn += len(names(tmp_path)) > 1
    assert torn
    folder_of(target, a="y" * 4096, b="y" * 4096, c="y" * 4096)
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("linked", [True, False], ids=["drives with links", "drives without"])
def test_a_name_that_somebody_takes_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not linked:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "one.txt"

    def write_while_they_do() -> None:
        with atomic_file(path, replace=False) as temporary:
            temporary.write_bytes(b"mine")
            path.write_bytes(b"theirs")

    with pytest.raises(BadInput, match="a file of this name"):
        write_while_they_do()
    assert path.read_bytes() == b"theirs"
    path.unlink()
    with atomic_file(path, replace=False) as temporary:
        temporary.write_bytes(b"mine")
    assert path.read_bytes() == b"mine"
    assert [item.name for item in tmp_path.iterdir()] == ["one.txt"]
