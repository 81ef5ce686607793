"""The report of a run: report.html, one page that opens anywhere and fetches nothing, report.png, its picture, and report.json,
its results for programs.

What the page shows comes from texts, file metadata and vocabularies, so all of it is escaped. The picture holds none of it:
matplotlib would read dollar signs as formulas, and its fonts lack most alphabets.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from sordino.errors import TrainingError
from sordino.evaluation.distance_report import DistanceReport, explanation, table, to_json
from sordino.evaluation.pictures import (
    ACCENT,
    FAINT,
    PLAIN,
    Dot,
    distance_figure,
    draw_dots,
    new_figure,
    plain_axes,
    rendered,
    whole_numbers,
)
from sordino.evaluation.report import ConditionLine
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.storage import write_bytes
from sordino.training.checkpoint import reading_stored
from sordino.training.events import HTML as HTML
from sordino.training.events import METRICS, Sample, Step, Validation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE = "report.png"
RESULTS = "report.json"

_EVENTS: dict[str, type[Step] | type[Validation] | type[Sample]] = {
    "step": Step,
    "validation": Validation,
    "sample": Sample,
}
# Single batches differ in difficulty by more than a run learns in many steps, so the curve is a running mean.
_SMOOTHED_SHARE = 12


@dataclass(frozen=True)
class InspectionTable:
    """What an inspection of the soft prompt found. picture: a PNG, or nothing. sentences: on what it shows. columns, cells: what
    is known of each virtual token beside its words, one row per token.
    """

    picture: bytes
    sentences: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[str]]


@dataclass(frozen=True)
class RunReport:
    """What a report shows.

    prompt: the result; its metadata give the title, the base model and the recipe. events: of the run, in order. nearest: for
    each virtual token (word, cosine) pairs, nearest first. inside: more about them. heldout: the table, with differences to the
    soft prompt alone. distance: gains after other text. verdicts: sentences on what they mean. samples: {"prompt", "with",
    "without"} objects. disclosure: what the soft prompt's file says to whoever gets it. notes: how the texts were split, and the
    like.
    """

    prompt: SinglePrompt
    events: Sequence[Step | Validation | Sample]
    nearest: Sequence[Sequence[tuple[str, float]]]
    inside: InspectionTable | None = None
    heldout: Sequence[ConditionLine] = ()
    distance: DistanceReport | None = None
    verdicts: Sequence[str] = ()
    samples: Sequence[Mapping[str, str]] = ()
    disclosure: Sequence[str] = ()
    notes: Sequence[str] = ()


def write_report(folder: Path, report: RunReport) -> None:
    """Write report.html, report.png and report.json into `folder`, each whole or not at all. Raises StorageError."""
    picture = rendered(_figure(report))
    page = _page(report, picture)
    write_bytes(folder / PICTURE, picture)
    write_bytes(folder / RESULTS, json.dumps(_results(report)).encode())
    write_bytes(folder / HTML, page)


def read_events(folder: Path) -> list[Step | Validation | Sample]:
    """The events of a run's metrics.jsonl, in order. Raises TrainingError where it is missing or broken."""
    path = folder / METRICS
    with reading_stored("the run's metrics cannot be read", path, error=TrainingError):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return [_EVENTS[line.pop("kind")](**line) for line in lines]


def _results(report: RunReport) -> dict[str, Any]:
    return {
        "verdicts": list(report.verdicts),
        "heldout": [_line_json(line) for line in report.heldout],
        "distance": to_json(report.distance) if report.distance else None,
        "samples": [dict(sample) for sample in report.samples],
        "notes": list(report.notes),
    }


def _line_json(line: ConditionLine) -> dict[str, Any]:
    over = next(iter(line.differences.values()), None)
    return {
        "kind": line.kind,
        "label": line.label,
        "tokens": line.tokens,
        "nll": line.nll.value,
        "bits_per_byte": line.bits_per_byte,
        "interval": line.nll.interval,
        "difference": over and over.value,
        "difference_interval": over and over.interval,
    }


# The page -------------------------------------------------------------------------------------------------------------


def _page(report: RunReport, picture: bytes) -> bytes:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = _visible
    source = resources.files("sordino").joinpath("data", "report.html.j2").read_text(encoding="utf-8")
    known = report.prompt.metadata
    text = environment.from_string(source).render(
        title=known.name or "A soft prompt",
        known=known,
        prompt=report.prompt,
        picture=b64encode(picture).decode("ascii"),
        heldout=report.heldout,
        distance=report.distance and _shown(report.distance),
        verdicts=report.verdicts,
        samples=report.samples,
        arriving=[event for event in report.events if isinstance(event, Sample)],
        nearest=report.nearest,
        inside=report.inside,
        inside_picture=b64encode(report.inside.picture).decode("ascii") if report.inside else "",
        recipe=[(key, value if isinstance(value, str) else json.dumps(value)) for key, value in known.training.items()],
        disclosure=report.disclosure,
        notes=report.notes,
    )
    # Half a surrogate pair, which JSON can hold, has no UTF-8.
    return text.encode("utf-8", errors="replace")


def _shown(report: DistanceReport) -> dict[str, Any]:
    found = table(report)
    return {
        "columns": found.columns,
        "rows": found.rows,
        "sentences": explanation(report),
        "picture": b64encode(rendered(distance_figure(report))).decode("ascii"),
    }


def _visible(word: str) -> str:
    """A word of the vocabulary without the space in front of it; one of white space only, as signs."""
    signs = {" ": "␣", "\n": "⏎", "\r": "⏎", "\t": "⇥"}
    return word.strip() or "".join(signs.get(char, "␣") for char in word) or "(nothing)"


# The picture ----------------------------------------------------------------------------------------------------------


def _figure(report: RunReport) -> Figure:
    """Curves on the left; on the right, if there are any, the held-out losses."""
    figure = new_figure(11 if report.heldout else 7.5, 5)
    columns = 2 if report.heldout else 1
    grid = figure.add_gridspec(2, columns, width_ratios=[3, 2][:columns], height_ratios=[4, 1])
    loss = figure.add_subplot(grid[0, 0])
    rate = figure.add_subplot(grid[1, 0], sharex=loss)
    _draw_losses(loss, report.events)
    loss.tick_params(labelbottom=False)
    _draw_rates(rate, report.events)
    if report.heldout:
        _draw_heldout(figure.add_subplot(grid[:, 1]), report.heldout)
    for axes in figure.axes:
        plain_axes(axes)
    return figure


def loss_figure(events: Sequence[Step | Validation | Sample]) -> Figure:
    """The losses so far, by themselves."""
    figure = new_figure(7, 3)
    axes = figure.add_subplot()
    _draw_losses(axes, events)
    axes.set_xlabel("step")
    whole_numbers(axes.xaxis)
    plain_axes(axes)
    return figure


def _draw_losses(axes: Axes, events: Sequence[Step | Validation | Sample]) -> None:
    steps = [event for event in events if isinstance(event, Step)]
    measured = [event for event in events if isinstance(event, Validation)]
    at, losses = [event.step for event in steps], [event.loss for event in steps]
    axes.plot(at, losses, color=FAINT, linewidth=0.6, alpha=0.6)
    axes.plot(at, _running_mean(losses), color=PLAIN, linewidth=1.6, label="training, running mean")
    if measured:
        axes.plot(
            [event.step for event in measured],
            [event.loss for event in measured],
            color=ACCENT,
            marker="o",
            markersize=3.5,
            linewidth=1.6,
            label="validation",
        )
        best = min(measured, key=lambda event: event.loss)
        axes.plot([best.step], [best.loss], "*", color=ACCENT, markersize=13, label=f"kept: step {best.step}")
    axes.set_title("Loss while training", loc="left")
    axes.set_ylabel("nats per token")
    if at or measured:
        axes.legend(frameon=False, fontsize=9)


def _draw_rates(axes: Axes, events: Sequence[Step | Validation | Sample]) -> None:
    steps = [event for event in events if isinstance(event, Step)]
    axes.plot([event.step for event in steps], [event.lr for event in steps], color=PLAIN, linewidth=1.4)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate\n(embedding RMS)", fontsize=8)
    axes.set_xlabel("step")
    whole_numbers(axes.xaxis)


def _draw_heldout(axes: Axes, heldout: Sequence[ConditionLine]) -> None:
    """A dot a condition with its interval, the lowest loss at the top."""
    dots = [
        Dot(heading, condition.nll.value, condition.nll.interval, accented=condition.kind == "soft prompt")
        for heading, condition in zip(_headings(heldout), heldout, strict=True)
    ]
    draw_dots(axes, sorted(dots, key=lambda dot: dot.value), with_values=True)


def _headings(heldout: Sequence[ConditionLine]) -> list[str]:
    """Our own words for the conditions, numbered where there are several of a kind."""
    headings = []
    counts: dict[str, int] = {}
    for condition in heldout:
        counts[condition.kind] = counts.get(condition.kind, 0) + 1
        number = f" {counts[condition.kind]}" if counts[condition.kind] > 1 else ""
        headings.append(
            {
                "soft prompt": f"soft prompt{number}\n({condition.tokens} vectors)",
                "no prompt": "nothing in front",
                "instruction": f"an instruction{number}",
                "excerpt": f"real excerpt,\n{condition.tokens} tokens",
            }[condition.kind]
        )
    return headings


def _running_mean(values: Sequence[float]) -> list[float]:
    """The mean of a value and of those around it, fewer of them at the ends."""
    reach = len(values) // _SMOOTHED_SHARE // 2
    means = []
    for at in range(len(values)):
        around = values[max(0, at - reach) : at + reach + 1]
        means.append(sum(around) / len(around))
    return means
