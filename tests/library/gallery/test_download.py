"""Files into a cache: continued, bounded, checked; a killed process leaves none that is not whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sordino.errors import GalleryError
from sordino.library.gallery.download import fetched
from sordino.library.gallery.web import Reach, Web
from sordino.models.cache import sha256_of
from tests.library.gallery.serving import FileHost, file_host

CONTENT = os.urandom(1 << 18)


@pytest.fixture
def host(empty_cache: Path) -> Iterator[FileHost]:
    with file_host() as one:
        one.files["/x.zip"] = CONTENT
        yield one


@pytest.fixture
def listed(tmp_path: Path) -> str:
    (tmp_path / "same").write_bytes(CONTENT)
    return sha256_of(tmp_path / "same")


def fetch(host: FileHost, target: Path, **more: object) -> Path:
    with Web() as web:
        return fetched(web, f"{host.url}/x.zip", target, most=Reach.MACHINE, **more)  # type: ignore[arg-type]


def ranges(host: FileHost) -> list[str]:
    return [asked for _, asked in host.asked]


def test_a_file_is_fetched_once_and_its_progress_told(host: FileHost, listed: str, tmp_path: Path) -> None:
    target, steps = tmp_path / "files" / "x.zip", list[tuple[int, int]]()
    for _ in range(2):
        fetch(host, target, size=len(CONTENT), sha256=listed, progress=lambda *step: steps.append(step))
    assert target.read_bytes() == CONTENT
    assert ranges(host) == [""]
    assert steps == sorted(steps)
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert list(target.parent.iterdir()) == [target]


def test_a_connection_that_breaks_is_continued(host: FileHost, listed: str, tmp_path: Path) -> None:
    host.cuts["/x.zip"] = [100_000, 50_000]
    assert fetch(host, tmp_path / "x.zip", size=len(CONTENT), sha256=listed).read_bytes() == CONTENT
    assert ranges(host) == ["", "bytes=100000-", "bytes=150000-"]


def test_one_that_breaks_and_breaks_is_given_up_and_continued_by_the_next(
    host: FileHost, listed: str, tmp_path: Path
) -> None:
    target = tmp_path / "x.zip"
    host.cuts["/x.zip"] = [1000, 0]
    with pytest.raises(GalleryError):
        fetch(host, target, size=len(CONTENT), sha256=listed)
    assert not target.exists()
    host.asked.clear()
    assert fetch(host, target, size=len(CONTENT), sha256=listed).read_bytes() == CONTENT
    assert ranges(host) == ["bytes=1000-"]


@pytest.mark.parametrize("begun", ["longer", "whole", "other"])
def test_what_an_earlier_process_left_is_checked(host: FileHost, listed: str, tmp_path: Path, begun: str) -> None:
    left = {"longer": CONTENT + b"x", "whole": CONTENT, "other": b"x" * 1000}[begun]
    (tmp_path / "x.zip.part").write_bytes(left)
    assert fetch(host, tmp_path / "x.zip", size=len(CONTENT), sha256=listed).read_bytes() == CONTENT


def test_a_server_without_ranges_begins_again(host: FileHost, listed: str, tmp_path: Path) -> None:
    host.whole.add("/x.zip")
    (tmp_path / "x.zip.part").write_bytes(CONTENT[:1000])
    assert fetch(host, tmp_path / "x.zip", size=len(CONTENT), sha256=listed).read_bytes() == CONTENT


def test_a_file_that_is_shorter_than_what_is_there(host: FileHost, tmp_path: Path) -> None:
    (tmp_path / "x.zip.part").write_bytes(CONTENT + b"x")
    with pytest.raises(GalleryError, match="not the file that was listed"):
        fetch(host, tmp_path / "x.zip", sha256="0" * 64)
    assert list(tmp_path.glob("x.zip*")) == []


def test_a_server_that_gives_no_part_of_nothing(host: FileHost, tmp_path: Path) -> None:
    host.statuses["/x.zip"] = 416
    for left in (b"", CONTENT[:10]):
        (tmp_path / "x.zip.part").write_bytes(left)
        with pytest.raises(GalleryError, match="HTTP 416"):
            fetch(host, tmp_path / "x.zip", sha256="0" * 64)


def test_without_a_hash_nothing_is_continued(host: FileHost, tmp_path: Path) -> None:
    (tmp_path / "x.zip.part").write_bytes(b"x" * 1000)
    assert fetch(host, tmp_path / "x.zip").read_bytes() == CONTENT
    assert ranges(host) == [""]


def test_another_file_than_was_listed_is_refused(host: FileHost, listed: str, tmp_path: Path) -> None:
    host.files["/x.zip"] = bytes(len(CONTENT))
    with pytest.raises(GalleryError, match="not the file that was listed"):
        fetch(host, tmp_path / "x.zip", size=len(CONTENT), sha256=listed)
    assert list(tmp_path.glob("x.zip*")) == []


def test_another_size_is_refused_before_its_bytes_are_read(host: FileHost, listed: str, tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="of another size"):
        fetch(host, tmp_path / "x.zip", size=len(CONTENT) - 1, sha256=listed)
    host.headers["/x.zip"] = {"Content-Length": str(1 << 31)}
    with pytest.raises(GalleryError, match="too large"):
        fetch(host, tmp_path / "x.zip")
    assert list(tmp_path.glob("x.zip*")) == []


def test_an_answer_without_an_end_is_cut_at_the_size(host: FileHost, listed: str, tmp_path: Path) -> None:
    host.headers["/x.zip"] = {"Content-Length": "", "Connection": "close"}
    with pytest.raises(GalleryError, match="larger than it may be"):
        fetch(host, tmp_path / "x.zip", size=1000, sha256=listed)
    assert list(tmp_path.glob("x.zip*")) == []


def test_kill_9_in_the_middle_leaves_no_half_file(host: FileHost, listed: str, tmp_path: Path) -> None:
    arrived, released = threading.Event(), threading.Event()
    host.held["/x.zip"] = (100_000, arrived, released)
    code = (
        "import sys; from pathlib import Path; from sordino.library.gallery.download import fetched\n"
        "from sordino.library.gallery.web import Reach, Web\n"
        "def say(done, total): print(done, flush=True)\n"
        "fetched(Web(), sys.argv[1], Path(sys.argv[2]), most=Reach.MACHINE, size=1 << 18, sha256=sys.argv[3], progress=say)"
    )
    target = tmp_path / "x.zip"
    command = [sys.executable, "-c", code, f"{host.url}/x.zip", str(target), listed]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 100_000:
            pass
        process.send_signal(signal.SIGKILL)
    released.set()
    assert not target.exists()
    del host.held["/x.zip"]
    host.asked.clear()
    assert fetch(host, target, size=len(CONTENT), sha256=listed).read_bytes() == CONTENT
    assert ranges(host)[0].startswith("bytes=")
