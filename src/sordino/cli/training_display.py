"""What the events of training runs look like on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from types import TracebackType
from typing import Any, Self

from rich.progress import Progress, TaskID
from rich.status import Status

from sordino.cli.console import err, one_line, out, print_json, printable, stop_on_interrupt, warn
from sordino.cli.evaluate import show_report
from sordino.cli.progress import share_bar, step_bar
from sordino.training import events
from sordino.training.calibration import FEWEST_STEPS, MINUTES


class Display:
    """A status line while something is worked on; a bar, and Ctrl-C that saves and stops, while steps are taken.

    console: where what a run says is printed.
    """

    console = out

    def __init__(self) -> None:
        self._status: Status | Progress | None = None
        self._stepping = ExitStack()
        self._stopping: Callable[[], bool] = lambda: False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end_status()
        self._stepping.close()

    def should_stop(self) -> bool:
        return self._stopping()

    def show_shared(self, event: object) -> bool:
        """Show an event that looks the same whatever is trained; False for another, which ends the status line."""
        if isinstance(event, events.Working):
            self._work(event)
            return True
        self.end_status()
        match event:
            case events.Warned():
                warn(event.message)
            case events.Disclosed():
                self.console.print("The file will disclose:")
                for line in event.lines:
                    self.console.print(f"  {printable(line)}")
            case events.PromptWritten():
                self.console.print(f"Written: {event.path.resolve()} ({event.tokens} virtual tokens)")
            case events.ReportWritten():
                self.console.print(f"Report:  {event.path.resolve()}")
            case _:
                return False
        return True

    def _work(self, event: events.Working) -> None:
        """A spinner, or a bar where it is known how much there is to do."""
        if self._status is not None and isinstance(self._status, Progress) != bool(event.total):
            self.end_status()
        if self._status is None:
            self._status = share_bar() if event.total else err.status("")
            self._status.start()
        if not isinstance(self._status, Progress):
            self._status.update(f"{event.what} ...")
            return
        if not self._status.tasks:
            self._status.add_task("")
        self._status.update(TaskID(0), description=event.what, completed=event.done, total=event.total)

    def end_status(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def show_bar(self, bar: Progress) -> None:
        """Until `end_steps`."""
        self._stepping.enter_context(bar)

    def begin_steps(self, bar: Progress) -> None:
        self._stopping = self._stepping.enter_context(stop_on_interrupt())
        self.show_bar(bar)

    def end_steps(self) -> None:
        self._stepping.close()


class RunDisplay(Display):
    """Shows one run, or several, each line with the name of its run."""

    def __init__(self, names: Sequence[str] = ("",)) -> None:
        super().__init__()
        self._several = names != ("",)
        self._waiting, self._running = set(names), set(names)
        self._count, self.steps = len(names), 0
        self._tasks: dict[str, TaskID] = {}
        self._bar = step_bar("  {task.fields[loss]}{task.fields[val]}{task.fields[speed]}", named=self._several)
        self.finished: dict[str, events.Finished] = {}

    @property
    def reached(self) -> str:
        """The step at which a run was stopped."""
        return f" after step {max(end.progress.step for end in self.finished.values())}"

    def show(self, event: events.RunEvent) -> None:
        """An event of a single run."""
        self.show_named("", event)

    def show_status(self, event: events.RunEvent) -> None:
        """As `show`, without lines on standard output: the spinner, the bar, and warnings."""
        if isinstance(event, events.Working | events.Started | events.Step | events.Finished | events.Warned):
            with out.capture():
                self.show(event)

    def show_named(self, name: str, event: events.RunEvent) -> None:
        """An event of the run called `name`; "" for all of them."""
        named = f"{one_line(name)}: " if name else ""
        if isinstance(event, events.Warned):
            event = events.Warned(named + event.message)
        if (self._several and isinstance(event, events.Disclosed)) or self.show_shared(event):
            if isinstance(event, events.ReportWritten) and not self._several and event.nearest_words:
                out.print(f"Nearest words: {' '.join(event.nearest_words)}")
            return
        match event:
            case events.TextsRead():
                show_texts(event, name)
            case events.Cost():
                self._show_cost(event)
            case events.LearningRates():
                tried = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in event.tried)
                out.print(f"{named}learning rate {event.best:g} (losses: {tried})")
            case events.Started():
                self._start(name, event)
            case events.Finished():
                self._finish(name, named, event)
            case events.Lost():
                if self._several:
                    warn(
                        f"{name} diverged at step {event.step}; its file will hold the best matrix before that: lower --lr"
                    )
            case events.Step():
                speed = f"  {event.tokens / event.seconds:.0f} tokens/s"
                self._bar.update(self._tasks[name], completed=event.step, loss=f"loss {event.loss:.3f}", speed=speed)
            case events.Validation():
                self._bar.update(self._tasks[name], val=f"  validation {event.loss:.3f}")
                best = " (best)" if event.best else ""
                self._bar.console.print(
                    f"{named}step {event.step}/{self.steps}: validation loss {event.loss:.4f}{best}"
                )
            case events.Sample():
                text = f"{printable(event.prompt)}|{printable(event.text)}"
                self._bar.console.print(f"{named}step {event.step}, a sample: {text}")
            case events.Evaluated() if not self._several:
                # With several runs, the figures are in their reports and in one table at the end.
                show_report(event.report, event.row_tokens)

    def _show_cost(self, cost: events.Cost) -> None:
        steps = f"{cost.steps} step{'s' if cost.steps > 1 else ''}"
        rest = f"of about {cost.step_seconds:.1f} s"
        if self._several:
            steps, rest = f"{self._count} soft prompts together, {steps} each,", f"{rest} for all"
        out.print(
            f"{steps} {rest}: {clock(cost.seconds)}, {clock(cost.measuring_seconds)} of it to measure the result; "
            + ("one base model; " if self._several else "")
            + memory(cost)
        )
        if cost.wanted_steps > cost.steps:
            out.print(
                f"That is what fits into about {MINUTES:.0f} minutes ({FEWEST_STEPS} steps at least). The texts call for "
                f"{cost.wanted_steps} steps: --steps {cost.wanted_steps} learns a little more, in {clock(cost.wanted_seconds)}."
            )

    def _start(self, name: str, event: events.Started) -> None:
        self.steps = event.steps
        how = printable(event.how)
        if self._several:
            out.print(f"{one_line(name)} starts from {how}.")
        self._tasks[name] = self._bar.add_task(one_line(name), total=event.steps, loss="", val="", speed="")
        self._waiting.discard(name)
        if not self._waiting:
            out.print(
                "Ctrl-C saves all and stops." if self._several else f"Starting from {how}. Ctrl-C saves and stops."
            )
            self.begin_steps(self._bar)

    def _finish(self, name: str, named: str, event: events.Finished) -> None:
        self.finished[name] = event
        self._running.discard(name)
        if not self._running:
            self.end_steps()
        if event.why == "diverged" and not self._several:
            warn(f"this run diverged after step {event.progress.step}; the file holds the best matrix before that")
        if event.why == "early":
            out.print(f"{named}stopped early: the validation loss was best at step {event.progress.best_step}.")
        if event.why != "stopped" and event.progress.best_step == 0:
            out.print(f"{named}validation was best before the first step, so the file is what the run started from.")


def show_texts(texts: events.TextsRead, name: str = "") -> None:
    if name:
        out.print(f"{one_line(name)}:", style="bold")
    out.print(
        f"Texts: {texts.train} pieces to train on ({texts.examples} examples, {texts.tokens} tokens), "
        f"{texts.validation} to validate, {texts.heldout} held out."
    )
    for line in (texts.how, *texts.notes):
        out.print(printable(line))
    warn(*texts.duplicates)


def show_stopped(folder: Path, how: str, *, command: str = "train") -> None:
    console = err if out.reader_left else out
    console.print(f"Stopped{how}")
    console.print(f"Go on with: sordino {command} --resume {quote(str(folder))}")


def memory(cost: events.Cost) -> str:
    return f"memory about {cost.memory_bytes / 2**30:.1f} GiB, {cost.free_bytes / 2**30:.1f} GiB more are free."


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


# A dry run as JSON: what the texts are and what they cost, a line each, as soon as each is known. ---------------------------


def print_event(event: events.RunEvent) -> None:
    if isinstance(event, events.TextsRead | events.Cost):
        print_json({"texts" if isinstance(event, events.TextsRead) else "cost": asdict(event)}, indent=None)
        sys.stdout.flush()


class GroupJson:
    """The texts of all runs by name on one line."""

    def __init__(self) -> None:
        self._texts: dict[str, Any] = {}

    def add(self, name: str, event: events.RunEvent) -> None:
        if isinstance(event, events.TextsRead):
            self._texts[name] = asdict(event)
        elif isinstance(event, events.Cost):
            print_json({"texts": self._texts}, indent=None)
            print_event(event)
