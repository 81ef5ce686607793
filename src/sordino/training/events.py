"""The events of a run, and metrics.jsonl, which records them.

Shape key: P virtual tokens, D model width.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from sordino.errors import StorageError
from sordino.training.state import Progress

METRICS = "metrics.jsonl"
# Beside it, once the run has been measured and its soft prompt written.
HTML = "report.html"


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
    "pruned" (others of its group did better) or "diverged" (a single run: at an earlier sitting).
    """

    matrix_PD: Tensor
    why: str
    progress: Progress


@dataclass(frozen=True)
class Lost:
    """The step's loss or gradient is not a number: this run of several ends here, with what it had learned before."""

    step: int
    loss: float
    grad_norm: float


Event = Step | Validation | Sample | Finished
E = TypeVar("E", Step, Validation, Sample)


class Metrics:
    """metrics.jsonl: a line an event. What a killed run wrote behind its last checkpoint is cut off, as it will be done again."""

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
            raise StorageError(
                f"the run's metrics could not be written ({error.strerror})",
                where=self._path,
                do="make room, then --resume",
            ) from error
        return event

    def flush(self) -> int:
        """Bytes written, safely on disk."""
        with self._path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()
