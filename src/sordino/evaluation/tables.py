"""What was measured, as tables and sentences: of losses on held-out texts, and of answers to a task."""

from __future__ import annotations

from collections.abc import Iterator

from sordino.evaluation.answers import TaskReport
from sordino.evaluation.classification import TaskLine
from sordino.evaluation.confidence import MIN_UNITS, Table, brackets, cells
from sordino.evaluation.free_answers import FreeLine, FreeReport
from sordino.evaluation.report import Measurement

_LABEL, _BEGINNING = 60, 45
# A confusion table of more labels than this is for the JSON's readers.
_CONFUSION = 8


def heading(kind: str, label: str) -> str:
    """What a line is about. kind: of `evaluation.conditions`, or of several soft prompts together."""
    label = " ".join(label.split())
    # Instructions that begin alike may end differently.
    label = label if len(label) <= _LABEL else f"{label[:_BEGINNING]}...{label[_BEGINNING + 3 - _LABEL :]}"
    if kind in ("instruction", "examples"):
        return f'"{label}"'
    if kind == "mean member":
        return f"mean of {label}"
    return f"{kind} {label}" if kind in ("soft prompt", "mixture", "best member", "ensemble") else label


def heldout_table(measured: Measurement, first: str) -> Table:
    """first: the soft prompt that the other lines are compared with."""
    rows = [
        [
            heading(line.kind, line.label),
            str(line.tokens),
            *cells(line.nll, "{:.3f}"),
            f"{line.bits_per_byte:.3f}",
            *cells(line.differences.get(first), "{:+.3f}"),
        ]
        for line in measured.lines
    ]
    return Table(["in front of the text", "#tokens", "#loss", "", "#bits per byte", "#over soft prompt", ""], rows)


# Answers to a task ----------------------------------------------------------------------------------------------------


def task_table(report: TaskReport | FreeReport, first: str) -> Table:
    """first: as in `heldout_table`."""
    several = len(report.sets) > 1
    own = (
        ("#accuracy", "", "#macro-F1", "#calibration error", "#NLL")
        if isinstance(report, TaskReport)
        else ("#exact match", "", "#F1", "#NLL")
    )
    rows = [
        [
            *([held.name] if several else []),
            heading(line.kind, line.label),
            str(line.tokens),
            *_measures(line),
            *cells(line.differences.get(first), "{:+.1f}", times=100),
        ]
        for held in report.sets
        for line in held.lines
    ]
    heads = ["in front of the row", "#tokens", *own, "#soft prompt over", ""]
    return Table([*(["held-out"] if several else []), *heads], rows)


def _measures(line: TaskLine | FreeLine) -> list[str]:
    share = line.accuracy if isinstance(line, TaskLine) else line.exact_match
    rest = (
        [f"{line.macro_f1.value:.3f}", f"{line.calibration_error.value:.3f}"]
        if isinstance(line, TaskLine)
        else [f"{100 * line.f1.value:.1f} %"]
    )
    shown = [f"{100 * share.value:.1f} %", brackets(share.interval, "{:.1f}", times=100)]
    return [*shown, *rest, f"{line.nll.value:.3f}"]


def task_explanation(report: TaskReport | FreeReport, first: str) -> list[str]:
    """What was measured and how to read it."""
    sets = [f"{held.name} ({held.rows:,} rows)" for held in report.sets]
    lines = [f"Measured on {', '.join(sets)}; every line of a set answers the same rows."]
    if isinstance(report, TaskReport):
        over = "accuracy"
        lines += [
            f"The answer is the likeliest of {', '.join(report.labels)}.",
            "Calibration error: how far the model's own certainty is off, over 10 bins; NLL: of the right label, nats.",
        ]
    else:
        over = "F1"
        lines.append("Case, punctuation and articles do not count. NLL: of the right answer and its end, nats a token.")
    lines.append(f"Soft prompt over: the {over} with {first} minus that of this line, in percentage points.")
    if report.sets[0].rows < MIN_UNITS:
        lines.append("There are too few rows for intervals.")
    else:
        lines.append(
            "In brackets: 95 % intervals, drawn by row; a difference whose interval leaves out 0 is unlikely to be chance."
        )
    if any(line.kind == "best member" for line in report.sets[0].lines):
        lines.append("The best member was chosen on these very rows, which flatters it.")
    return lines


def confusion_tables(report: TaskReport | FreeReport, first: str) -> Iterator[Table]:
    """For each held-out set, how often each label was answered with each; none for many labels or free answers."""
    if not isinstance(report, TaskReport) or len(report.labels) > _CONFUSION:
        return
    for held in report.sets:
        counts = zip(report.labels, held.own(first).confusion, strict=True)
        yield Table(
            ["right label", *(f"#answered {label}" for label in report.labels)],
            [[label, *map(str, row)] for label, row in counts],
            f"With {first}, on {held.name}:",
        )
