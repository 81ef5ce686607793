"""What a training run does now, as a file: for a program that shows it and reads no log.

Only what has no events in metrics.jsonl: reading texts, measuring the machine, measuring the result. While steps are taken there is
no such file.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sordino.errors import StorageError
from sordino.storage import write_bytes
from sordino.training.events import OnEvent, RunEvent, Started, Step, Working

FILE = "now.json"
_SECONDS = 0.5


@dataclass(frozen=True)
class Activity:
    """done, total: as in `Working`. left: the estimated seconds until all is done, from the speed so far; 0 if unknown."""

    what: str
    done: int = 0
    total: int = 0
    left: float = 0.0

    @classmethod
    def read(cls, path: Path) -> Activity | None:
        """None where there is no such file, or it is something else."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError):
            return None


def noting(path: Path | None, on_event: OnEvent) -> OnEvent:
    """`on_event`, with what the run does now written to `path`, if there is one and the disk lets it."""
    return on_event if path is None else _Noting(path, on_event)


class _Noting:
    def __init__(self, path: Path, on_event: OnEvent) -> None:
        self._path, self._on_event = path, on_event
        self._total, self._first, self._began, self._written = 0, 0, 0.0, 0.0
        self._what = ""

    def __call__(self, event: RunEvent) -> None:
        # On Windows an open file can be neither replaced nor removed, and the run does not need this one.
        with suppress(OSError, StorageError):
            if isinstance(event, Working):
                self._note(event)
            elif self._what and isinstance(event, Step | Started):
                self._path.unlink(missing_ok=True)
                self._what = ""
        self._on_event(event)

    def _note(self, event: Working) -> None:
        now = time.monotonic()
        # The parts of a measurement have one total, and follow each other on one bar.
        if event.total != self._total or not self._what:
            self._total, self._first, self._began = event.total, event.done, now
        if event.what == self._what and now - self._written < _SECONDS:
            return
        done = event.done - self._first
        left = (now - self._began) / done * (event.total - event.done) if done > 0 else 0.0
        activity = Activity(event.what, event.done, event.total, left)
        write_bytes(self._path, json.dumps(asdict(activity)).encode())
        self._what, self._written = event.what, now
