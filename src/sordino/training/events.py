"""The events of a run: those of the loop, which metrics.jsonl records, and those of what happens before and after it.

Shape key: P virtual tokens, D model width.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from sordino.errors import StorageError
from sordino.evaluation.report import Report
from sordino.library.outputs import REPORT
from sordino.training.state import Progress

METRICS = "metrics.jsonl"
# Beside it, once the run has been measured and its soft prompt written.
HTML = REPORT


@dataclass(frozen=True)
class Step:
    """One optimiser step is done. loss: nats a token, before the step. seconds: its duration, of all runs that shared it."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Validation:
    """The weight average's loss on the validation set, nats a token; whether it is the best so far."""

    step: int
    loss: float
    best: bool


@dataclass(frozen=True)
class Sample:
    """A continuation by the prompt as it is now, always of the same text with the same seed."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Finished:
    """matrix_PD: the result, float32. why: "steps" (all done), "early" (validation stopped falling), "stopped" (asked to),
    "pruned" (others of its group did better) or "diverged" (a single run, before it was resumed).
    """

    matrix_PD: Tensor = field(repr=False)
    why: str
    progress: Progress


@dataclass(frozen=True)
class Lost:
    """The step's loss or gradient is not a number: this run of several ends here, with what it had learned before."""

    step: int
    loss: float
    grad_norm: float


# Before and after the loop ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextsRead:
    """The texts are split. train, validation, heldout: pieces of each set. examples, tokens: to train on. how: the split, in a
    sentence. notes, duplicates: sentences for the user. sample_text: what the run's samples continue.
    """

    train: int
    validation: int
    heldout: int
    examples: int
    tokens: int
    how: str
    notes: tuple[str, ...]
    duplicates: tuple[str, ...]
    sample_text: str


@dataclass(frozen=True)
class Cost:
    """What a run will cost on this machine. step_seconds is measured; memory_bytes is the process's peak so far plus room.
    seconds: of the whole run, of which measuring_seconds measure the result. wanted_steps: where their number was chosen, how
    many the texts are worth; else 0. wanted_seconds: of a run of so many.
    """

    step_seconds: float
    evaluation_seconds: float
    steps: int
    seconds: float
    memory_bytes: int
    free_bytes: int
    measuring_seconds: float = 0.0
    wanted_steps: int = 0
    wanted_seconds: float = 0.0


@dataclass(frozen=True)
class LearningRates:
    """best: the learning rate to use. tried: every (rate, validation loss in nats a token), inf where it diverged."""

    best: float
    tried: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Working:
    """Something without events of its own takes a while. done, total: how far it is, where that is known."""

    what: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Started:
    """The steps begin. how: where the first matrix came from. steps: of the whole run."""

    how: str
    steps: int


@dataclass(frozen=True)
class Warned:
    """Something is missing or doubtful; the run goes on."""

    message: str


@dataclass(frozen=True)
class Evaluated:
    """The result is measured on the held-out texts, in windows of `row_tokens`."""

    report: Report = field(repr=False)
    row_tokens: int


@dataclass(frozen=True)
class Disclosed:
    """What the soft prompt's file will say to whoever gets it."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class PromptWritten:
    """The soft prompt's file is there."""

    path: Path
    tokens: int


@dataclass(frozen=True)
class ReportWritten:
    """The report is there. nearest_words: the nearest word of each virtual token."""

    path: Path
    nearest_words: tuple[str, ...]


# What the loop yields, and what an observer of a whole run is called with.
Event = Step | Validation | Sample | Finished
Before = TextsRead | Cost | LearningRates | Working | Started
After = Warned | Evaluated | Disclosed | PromptWritten | ReportWritten
RunEvent = Before | Event | Lost | After
OnEvent = Callable[[RunEvent], None]
# Called with the name of a run of a group, or with "" for what concerns all of them.
OnGroupEvent = Callable[[str, RunEvent], None]
E = TypeVar("E", Step, Validation, Sample)


def nobody(event: RunEvent) -> None:
    """Ignore the event: for a run without an observer."""


def working(what: str, on_event: Callable[[Working], None]) -> Callable[[int, int], None]:
    """The progress (done, total) of a piece of work, as events."""
    return lambda done, total: on_event(Working(what, done, total))


class MetricsFile:
    """metrics.jsonl: a line an event. What a killed run wrote after its last checkpoint is cut off, as it will be done again."""

    def __init__(self, path: Path, keep: int) -> None:
        self._path = path
        with path.open("ab") as file:
            file.truncate(min(keep, path.stat().st_size))

    def add(self, event: E) -> E:
        line: dict[str, Any] = {"kind": type(event).__name__.lower(), **asdict(event)}
        try:
            with self._path.open("ab") as file:
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            raise StorageError(
                f"the run's metrics could not be written ({error.strerror})",
                where=self._path,
                do="put the folder back, then --resume; or start again" if gone else "make room, then --resume",
            ) from error
        return event

    def flush(self) -> int:
        """Bytes written, safely on disk."""
        with self._path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()
