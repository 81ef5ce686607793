"""What the events and the report of a mixture look like on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.progress import TaskID

from sordino.cli.console import err, note, one_line, out, show_table, warn
from sordino.cli.loading import generate_command
from sordino.cli.progress import step_bar
from sordino.cli.training_display import Display
from sordino.evaluation.confidence import brackets, cells
from sordino.training.events import Validation
from sordino.training.mixture.config import FitConfig
from sordino.training.mixture.execute import ExamplesRead, JointStarted, MixtureEvent
from sordino.training.mixture.fit import FittedMixture
from sordino.training.mixture.joint import JointResult, WeightedStep
from sordino.training.mixture.report import TITLES, MixtureLine, explanation, verdicts

_COLUMNS = ("what predicts", "#weight", "#loss", "", "#over mixture", "")


class MixtureDisplay(Display):
    """On stderr: results alone are printed on stdout."""

    console = err

    def __init__(self) -> None:
        super().__init__()
        self._bar = step_bar("  {task.fields[state]}")
        self._task, self._steps = TaskID(0), 0

    def show(self, event: MixtureEvent) -> None:
        if self.show_shared(event):
            return
        match event:
            case ExamplesRead():
                sets = f"{event.train} examples to fit, {event.validation} to validate, {event.heldout} held out."
                err.print(f"Texts: {sets}")
                note(event.how, *event.notes)
                warn(*event.duplicates)
            case JointStarted():
                err.print(
                    f"Training {event.components} soft prompts together, from {one_line(event.how)}. "
                    "It cannot be resumed: Ctrl-C discards it."
                )
                self._task, self._steps = self._bar.add_task("", total=event.steps, state=""), event.steps
                self.show_bar(self._bar)
            case WeightedStep():
                weights = " ".join(f"{weight:.2f}" for weight in event.weights)
                state = f"loss {event.step.loss:.3f}  weights {weights}"
                self._bar.update(self._task, completed=event.step.step, state=state)
            case Validation():
                best = " (best)" if event.best else ""
                self._bar.console.print(f"step {event.step}/{self._steps}: validation loss {event.loss:.4f}{best}")
            case JointResult():
                self.end_steps()


def show_fitted(fitted: FittedMixture, config: FitConfig, path: Path, model: str) -> None:
    """The table, what its columns mean, and what came out. model: as the user named it."""
    report = fitted.report
    show_table(_COLUMNS, map(_cells, report.lines), explanation=explanation(report, config.row_tokens))
    for line in verdicts(report):
        out.print(one_line(line), style="bold")
    for line in fitted.notes:
        out.print(f"Note: {one_line(line)}.")
    if fitted.weights.short_by > 1e-6:
        out.print(f"Note: EM stopped within {fitted.weights.short_by:.1e} nats an example of the best weights.")
    gated = "with a gate" if fitted.mixture.gate is not None else "with fixed weights"
    count = len(fitted.mixture.components)
    out.print(f"Written: {path.resolve()} ({count} component{'s' * (count > 1)}, {gated})")
    out.print(f"Try it:  {generate_command('Once', path, model)}")


def _cells(line: MixtureLine) -> list[str]:
    return [
        one_line(line.label) if line.kind == "component" else TITLES[line.kind],
        "" if line.weight is None else f"{line.weight:.3f}",
        f"{line.nll.value:.4f}",
        brackets(line.nll.interval, "{:.3f}"),
        *cells(None if line.kind == "mixture" else line.less_mixture, "{:+.4f}"),
    ]
