"""What the events and the results of a sweep look like on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from rich.progress import TaskID

from sordino.cli.console import one_line, out, show_table, warn
from sordino.cli.progress import step_bar
from sordino.cli.training_display import Display, clock, memory, show_texts
from sordino.training.events import Cost, Disclosed, Finished, Lost, RunEvent, Started, Step, TextsRead
from sordino.training.sweep.execute import RESULTS, ModelStarted, SweepResult
from sordino.training.sweep.grid import Spec
from sordino.training.sweep.results import Measured, ModelOutcome, Outcome
from sordino.training.sweep.running import share_of

_COLUMNS = (
    *("model", "run", "kind", "#tokens", "#lr", "init", "method", "#seed", "#steps", "ended"),
    *("#validation", "#held-out", "#bits a byte"),
)
_ENDS = {"steps": "at its end", "pruned": "ended early, among the worse"}


class SweepDisplay(Display):
    """One bar for all runs of a model."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self._spec, self._steps = spec, spec.rest.steps
        self._model, self._left = "", 0
        self._bar, self._task = step_bar(", runs left: {task.fields[left]}"), TaskID(0)

    def show(self, name: str, event: RunEvent | ModelStarted) -> None:
        """An event of the run called `name`; "" for all of a model."""
        # The figures of single runs are in their folders and in the results.
        if isinstance(event, Disclosed) or self.show_shared(event):
            return
        match event:
            case ModelStarted():
                self._model, self._left = one_line(event.model), event.runs
                count = (
                    f"{event.runs} run{'s' * (event.runs > 1)}." if event.runs else "no combination with it was drawn."
                )
                out.print(f"{self._model}: {count}", style="bold")
            case TextsRead():
                show_texts(event)
            case Cost():
                self._show_cost(event)
            case Started():
                self._bar = step_bar(", runs left: {task.fields[left]}")
                self._task = self._bar.add_task("", total=event.steps, left=self._left)
                self.begin_steps(self._bar)
            case Step():
                self._bar.update(self._task, completed=event.step, left=self._left)
            case Lost():
                warn(f"run {name} diverged at step {event.step}")
            case Finished():
                self._finish(name, event)

    def _show_cost(self, cost: Cost) -> None:
        full = f"{clock(cost.seconds)} for all to their end"
        part = 1.0 if self._spec.full else share_of(self._left)
        share = f"; halved at an eighth, a quarter and a half, about {clock(part * cost.seconds)}" if part < 1 else ""
        out.print(
            f"{self._left} run{'s' * (self._left > 1)} of {self._steps} steps on {self._model}, "
            f"{cost.step_seconds:.1f} s for a step of all: {full}{share}; {memory(cost)} Ctrl-C saves and stops."
        )

    def _finish(self, name: str, event: Finished) -> None:
        self._left -= 1
        if event.why != "stopped":
            progress, why = event.progress, _ENDS.get(event.why, event.why)
            self._bar.console.print(
                f"run {name}: {why}, step {progress.step}/{self._steps}, validation {progress.best_loss:.4f}"
            )
        if self._left == 0:
            self.end_steps()


def show_result(result: SweepResult, folder: Path) -> None:
    best = result.best[1] if result.best is not None else None
    out.print()
    show_table(_COLUMNS, _rows(result.models, best))
    share = f"{result.rows / result.rows_in_full:.0%}"
    out.print(f"Trained on {result.rows:,} rows; all runs to their end would be {result.rows_in_full:,} ({share}).")
    out.print("What that says about arXiv 2104.08691:", style="bold")
    for claim in result.claims:
        out.print(f"  {one_line(claim.claim)}: {claim.verdict}. {one_line(claim.evidence)}.")
    if best is None:
        warn("no run went to its end: there is no winner")
        return
    choice = best.choice
    settings = (
        f"{one_line(choice.model)}, {choice.kind}, {choice.tokens} tokens, lr {choice.lr:g}, init {one_line(choice.init)}, "
        f"{choice.method}, seed {choice.seed}"
    )
    out.print(f"Winner:  {(folder / result.file).resolve()} ({settings})")
    out.print(f"Results: {(folder / RESULTS).resolve()}")


def _rows(models: tuple[ModelOutcome, ...], best: Outcome | None) -> Iterator[tuple[str, ...]]:
    """Best first, by validation loss; those that went to their end before those that ended early."""
    for outcome in models:
        for run in sorted(outcome.runs, key=lambda run: (not run.complete, -run.steps, run.validation)):
            choice, mark = run.choice, " *" if run is best else ""
            yield (
                one_line(outcome.model), run.name + mark, choice.kind, str(choice.tokens), f"{choice.lr:g}", one_line(choice.init),
                choice.method, str(choice.seed), str(run.steps), run.why,
                f"{run.validation:.4f}" if math.isfinite(run.validation) else "", *_figures(run.heldout),
            )  # fmt: skip
        yield one_line(outcome.model), "none", "", "0", *[""] * 7, *_figures(outcome.none)


def _figures(measured: Measured | None) -> tuple[str, str]:
    return (f"{measured.nll:.4f}", f"{measured.bits_per_byte:.4f}") if measured else ("", "")
