"""The queue of training runs: nothing is begun twice, nothing that runs is changed. Processes that only sleep stand for runs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sordino.errors import BadInput, StorageError
from sordino.training import job_files
from sordino.training import queue as module
from sordino.training.queue import Jobs
from tests.waiting import WAIT

MODEL = {"model": "smollm2"}


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Jobs]]:
    """Opens the queue as one more server of the same user would."""
    asleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(module, "command_of", lambda *arguments, command: [*asleep, *arguments])
    made: list[Jobs] = []

    def one() -> Jobs:
        made.append(Jobs(tmp_path / "training"))
        return made[-1]

    yield one
    for child in [child for queue in made for child in queue._children.values()]:
        child.kill()
        child.wait()


def children() -> int:
    return len([one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE])


def test_two_servers_begin_a_run_once(opened: Callable[[], Jobs]) -> None:
    before = children()
    first, second = opened(), opened()
    for name in ("one", "two"):
        first.train(first.new("", [("a.txt", b"text")]), **MODEL, name=name, flags=(), settings={})
    for _ in range(3):
        second._tick()
        first._tick()
    assert children() == before + 1
    assert sorted(first.state(job) for job in first.files.all()) == ["running", "waiting"]
    assert first.files.all() == second.files.all()


def test_a_run_that_the_disk_does_not_let_begin_is_not_begun_again_and_again(
    opened: Callable[[], Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, queue = children(), opened()
    job = queue.train(queue.new("", [("a.txt", b"text")]), **MODEL, name="v", flags=(), settings={})

    def refused(path: Path, data: bytes) -> None:
        raise StorageError("could not be written (No space left on device)", where=path)

    with monkeypatch.context() as patched:
        patched.setattr(job_files, "write_bytes", refused)
        with pytest.raises(StorageError):
            queue._tick()
        for _ in range(3):
            queue._tick()
    assert children() == before
    assert queue.state(queue.get(job.id)) == "waiting"
    told = queue.failure(job)
    assert told is not None
    assert "No space left" in told.message
    # With room again it begins.
    queue._not_before = 0.0
    queue._tick()
    assert queue.state(queue.get(job.id)) == "running"
    assert queue.failure(job) is None


def test_a_run_that_was_begun_keeps_its_model(opened: Callable[[], Jobs]) -> None:
    queue = opened()
    draft = queue.new("", [("a.txt", b"text")])
    queue.train(draft, **MODEL, name="v", flags=(), settings={})
    # Another tab still shows the draft.
    with pytest.raises(BadInput, match="started already"):
        queue.measure(draft, (), model="another")
    with pytest.raises(BadInput, match="started already"):
        queue.train(draft, model="another", name="w", flags=(), settings={})
    assert (queue.get(draft.id).model, queue.get(draft.id).name) == ("smollm2", "v")


def test_what_does_not_run_is_not_stopped(opened: Callable[[], Jobs]) -> None:
    queue = opened()
    draft = queue.new("", [("a.txt", b"text")])
    queue.stop(draft)
    assert queue.state(queue.get(draft.id)) == "draft"
    waiting = queue.train(draft, **MODEL, name="v", flags=(), settings={})
    queue.stop(waiting)
    assert queue.state(queue.get(draft.id)) == "stopped"


def test_texts_that_cannot_be_kept_leave_no_folder(opened: Callable[[], Jobs], tmp_path: Path) -> None:
    queue = opened()
    with pytest.raises(BadInput):
        queue.new("", [("good.txt", b"text"), ("../bad.txt", b"text")])
    with pytest.raises(StorageError):
        queue.new("", [("a", b"text"), ("a/b.txt", b"text")])
    assert not list((tmp_path / "training").glob("*/"))


BAD = [
    {"created": None},
    {"created": "yesterday"},
    {"created": float("nan")},
    {"since": None, "asked": "train"},
    {"flags": None},
    {"flags": [None]},
    {"flags": ["--name=a\0b"], "asked": "train"},
    {"flags": ["--name=a\ud800b"], "asked": "train"},
    {"flags": ["--name=" + "a" * 200_000], "asked": "train"},
    {"model": 5, "asked": "train"},
    {"model": "a\0b", "asked": "train"},
    {"pid": 10**30},
    {"pid": -1},
    {"pid": True, "born": None},
    {"asked": "nothing"},
    {"settings": None},
    {"settings": {"steps": "many"}},
    {"error": None},
    {"unknown": 1},
]


@pytest.mark.parametrize("change", BAD, ids=range(len(BAD)))
def test_one_bad_job_keeps_no_other_from_its_turn(
    opened: Callable[[], Jobs], tmp_path: Path, change: dict[str, Any]
) -> None:
    before, queue = children(), opened()
    bad = queue.new("", [("a.txt", b"text")])
    path = queue.files.place(bad.id) / "job.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "since": 1.0, **change}))
    good = queue.train(queue.new("", [("a.txt", b"text")]), **MODEL, name="v", flags=(), settings={})
    for _ in range(3):
        queue._tick()
    assert queue.state(queue.get(good.id)) == "running"
    assert children() == before + 1
    assert good.id in [job.id for job in queue.files.all()]
    assert all(isinstance(queue.files.steps(job), int) for job in queue.files.all())


def test_the_watch_goes_on_whatever_happens(
    opened: Callable[[], Jobs], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queue = opened()
    job = queue.train(queue.new("", [("a.txt", b"text")]), **MODEL, name="v", flags=(), settings={})
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    real, broken = queue._tick, iter(range(5))

    def tick() -> None:
        if next(broken, None) is not None:
            raise RuntimeError("a bug")
        real()

    monkeypatch.setattr(queue, "_tick", tick)
    queue.start()
    deadline = time.monotonic() + WAIT
    while queue.state(queue.get(job.id)) != "running" and time.monotonic() < deadline:
        time.sleep(0.01)
    queue.close()
    assert queue.state(queue.get(job.id)) == "running"
    # Said once, with where it happened.
    assert [bool(one.exc_info) for one in caplog.records] == [True]


def test_files_that_stay_the_same_are_read_once(opened: Callable[[], Jobs], monkeypatch: pytest.MonkeyPatch) -> None:
    queue = opened()
    jobs = [
        queue.train(queue.new("", [("a.txt", b"text")]), **MODEL, name="v", flags=(), settings={}) for _ in range(5)
    ]
    queue._tick()
    queue.files.all()
    for job in jobs:
        queue.files.text_names(job)
    read: list[Path] = []
    bytes_of, walk = Path.read_bytes, Path.rglob
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or bytes_of(path))
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: read.append(path) or walk(path, pattern))
    locks: list[object] = []
    acquire = queue.files._file_lock.acquire
    monkeypatch.setattr(queue.files._file_lock, "acquire", lambda **named: locks.append(named) or acquire(**named))
    for _ in range(3):
        queue._tick()
        assert [queue.files.text_names(job) for job in queue.files.all()] == [["a.txt"]] * 5
    assert (read, locks) == ([], [])
    # A change by another server is seen.
    opened().stop(jobs[4])
    assert queue.state(queue.get(jobs[4].id)) == "stopped"
    assert len(read) > 0
