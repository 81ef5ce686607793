"""The queue of training runs: nothing is begun twice, nothing that runs is changed. Processes that only sleep stand for runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sordino.errors import BadInput, StorageError
from sordino.training import queue as module
from sordino.training.queue import Jobs

MODEL = {"model": "smollm2"}


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Jobs]]:
    """Opens the queue as one more server of the same user would."""
    monkeypatch.setattr(module, "command_of", lambda *arguments: [sys.executable, "-c", "import time; time.sleep(60)"])
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
    assert sorted(first.state(job) for job in first.all()) == ["running", "waiting"]
    assert first.all() == second.all()


def test_a_run_that_the_disk_does_not_let_begin_is_not_begun_again_and_again(
    opened: Callable[[], Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, queue = children(), opened()
    job = queue.train(queue.new("", [("a.txt", b"text")]), **MODEL, name="v", flags=(), settings={})

    def refused(path: Path, data: bytes) -> None:
        raise StorageError("could not be written (No space left on device)", where=path)

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_bytes", refused)
        with pytest.raises(StorageError):
            queue._tick()
        for _ in range(3):
            queue._tick()
    assert children() == before
    assert queue.state(queue.get(job.id)) == "waiting"
    assert "No space left" in queue.error(job)
    # With room again it begins.
    queue._not_before = 0.0
    queue._tick()
    assert queue.state(queue.get(job.id)) == "running"
    assert queue.error(job) == ""


def test_a_run_that_was_begun_keeps_its_model(opened: Callable[[], Jobs]) -> None:
    queue = opened()
    draft = queue.new("", [("a.txt", b"text")])
    queue.train(draft, **MODEL, name="v", flags=(), settings={})
    # Another tab still shows the draft.
    with pytest.raises(BadInput, match="begun already"):
        queue.look(draft, (), model="another")
    with pytest.raises(BadInput, match="begun already"):
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
