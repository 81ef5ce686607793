"""A run as it goes, in a notebook's cell: where it is, the loss so far, the last samples, and what it warns of."""

from __future__ import annotations

import math
import time
from base64 import b64encode
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from sordino.evaluation.pictures import rendered
from sordino.training.events import (
    Cost,
    Finished,
    PromptWritten,
    RunEvent,
    Sample,
    Started,
    Step,
    TextsRead,
    Validation,
    Warned,
    Working,
)
from sordino.training.report import loss_figure, read_events

_SAMPLES = 3


class RunView:
    """Shows a run in a notebook's cell: `on_event=sordino.RunView(display)`, with the notebook's own `display`.

    The cell is drawn again at evaluations and samples, and at most every `seconds` between them. resumed: the folder of a run
    that goes on, whose curve is then drawn from its first step. Raises TrainingError where its metrics cannot be read.
    """

    def __init__(self, display: Callable[..., Any], *, resumed: str | Path | None = None, seconds: float = 3.0) -> None:
        self._events: list[Step | Validation | Sample] = [] if resumed is None else read_events(Path(resumed))
        self._resumed = resumed is not None
        self._status, self._steps = "Begins", 0
        self._lines: list[str] = []
        self._seconds, self._drawn = seconds, time.monotonic()
        self._shown = display(self, display_id=True)

    def __call__(self, event: RunEvent) -> None:
        """Take an event of the run, and draw the cell again where that is due."""
        match event:
            case Step() | Validation() | Sample():
                self._add(event)
            case TextsRead():
                self._lines += [f"{event.train} pieces to train on, {event.heldout} held out.", event.how, *event.notes]
            case Cost():
                self._lines.append(f"{event.steps} steps, about {math.ceil(event.seconds / 60)} min.")
            case Started():
                self._steps = event.steps
            case Working():
                self._status = event.what + (f", {event.done} of {event.total}" if event.total else "")
            case Warned():
                self._lines.append(f"Warning: {event.message}")
            case Finished(why="early"):
                self._lines.append("Stopped early: the validation loss fell no more.")
            case PromptWritten():
                self._status = f"Written: {event.path}"
            case _:
                return
        if not isinstance(event, Step | Working) or time.monotonic() - self._drawn >= self._seconds:
            self._shown.update(self)
            self._drawn = time.monotonic()

    def _add(self, event: Step | Validation | Sample) -> None:
        if self._resumed:
            # What was done after the last checkpoint is done again.
            self._events = [earlier for earlier in self._events if earlier.step < event.step]
            self._resumed = False
        self._events.append(event)
        if isinstance(event, Step):
            self._status = f"Step {event.step} of {self._steps}, {event.seconds:.1f} s a step, loss {event.loss:.3f}"

    def _repr_html_(self) -> str:
        """The cell. All that comes from texts is escaped."""
        samples = [event for event in self._events if isinstance(event, Sample)][-_SAMPLES:]
        picture = b64encode(rendered(loss_figure(self._events))).decode("ascii") if self._events else ""
        return "\n".join(
            [
                f"<p><b>{escape(self._status)}</b></p>",
                *([f'<img alt="Loss by step" src="data:image/png;base64,{picture}">'] if picture else []),
                *(
                    f'<p style="white-space: pre-wrap">Step {one.step}: <i>{escape(one.prompt)}</i>|{escape(one.text)}</p>'
                    for one in reversed(samples)
                ),
                *(f"<p><small>{escape(line)}</small></p>" for line in self._lines),
            ]
        )
