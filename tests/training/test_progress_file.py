"""What a run does now, as a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from sordino.training import progress_file
from sordino.training.events import RunEvent, Started, Step, Working
from sordino.training.progress_file import Activity, noting


def test_what_has_no_steps_is_in_the_file_and_how_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock, seen = tmp_path / "now.json", [100.0], list[RunEvent]()
    monkeypatch.setattr(progress_file.time, "monotonic", lambda: clock[0])
    note = noting(path, seen.append)
    assert Activity.read(path) is None
    note(Working("Reading the texts"))
    assert Activity.read(path) == Activity("Reading the texts")
    note(Started("data", 20))
    assert Activity.read(path) is None, "steps say themselves how far they are"
    note(Working("Measuring: samples", 0, 100))
    clock[0] += 10
    note(Working("Measuring: held-out texts", 25, 100))
    assert Activity.read(path) == Activity("Measuring: held-out texts", 25, 100, left=30.0)
    clock[0] += 0.1
    note(Working("Measuring: held-out texts", 26, 100))
    assert Activity.read(path) == Activity("Measuring: held-out texts", 25, 100, left=30.0), "not at every position"
    note(Step(1, 3.0, 0.1, 1.0, 90, 1.0))
    assert not path.exists()
    assert len(seen) == 6, "whoever else listens hears all"


def test_without_a_path_nothing_is_written_and_damage_is_nothing(tmp_path: Path) -> None:
    seen: list[RunEvent] = []
    noting(None, seen.append)(Working("x"))
    assert len(seen) == 1
    (tmp_path / "now.json").write_text('{"else": 1}')
    assert Activity.read(tmp_path / "now.json") is None


def test_a_file_that_cannot_be_replaced_or_removed_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows while somebody reads it."""
    path, seen = tmp_path / "now.json", list[RunEvent]()
    note = noting(path, seen.append)
    note(Working("Reading the texts"))

    def held_open(*given: object, **named: object) -> None:
        raise PermissionError(13, "The process cannot access the file", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("sordino.storage.os.replace", held_open)
        patched.setattr(Path, "unlink", held_open)
        note(Working("Measuring: samples", 0, 100))
        note(Started("data", 20))
    assert Activity.read(path) == Activity("Reading the texts")
    note(Step(1, 3.0, 0.1, 1.0, 90, 1.0))
    assert not path.exists(), "removed as soon as it can be"
    assert len(seen) == 4
