"""Held-out loss against each factor of a sweep, a PNG a factor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sordino.evaluation.pictures import COLOURS, drawable, new_figure, plain_axes, rendered
from sordino.training.sweep.grid import FACTORS
from sordino.training.sweep.results import ModelOutcome, Outcome, levels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEADINGS = {
    "model": "base model",
    "kind": "kind of soft prompt",
    "tokens": "virtual tokens",
    "lr": "learning rate (in units of the RMS)",
    "init": "where the soft prompt starts",
    "method": "method",
    "seed": "seed",
}


def pictures(models: Sequence[ModelOutcome]) -> dict[str, bytes]:
    """PNGs by file name, of the factors that finished runs have more than one value of."""
    done = [run for model in models for run in model.runs if run.complete]
    return {
        f"heldout-by-{factor}.png": rendered(_figure(models, factor)) for factor in FACTORS if _varied(done, factor)
    }


def _varied(runs: Sequence[Outcome], factor: str) -> bool:
    """Whether it has several values among runs of one kind: each kind has a learning rate of its own by default."""
    parts = [runs] if factor == "kind" else [[r for r in runs if r.choice.kind == kind] for kind in ("embedding", "kv")]
    return any(len({getattr(run.choice, factor) for run in part}) > 1 for part in parts)


def _figure(models: Sequence[ModelOutcome], factor: str) -> Figure:
    """Small dots are runs, large ones the best other settings (chosen on validation): their mean and spread over seeds."""
    key = "bits_per_byte" if len(models) > 1 else "nll"
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    values = list(dict.fromkeys(getattr(run.choice, factor) for model in models for run in model.runs))
    values = sorted(values) if factor in ("tokens", "lr", "seed") else values
    for number, model in enumerate(models):
        colour = COLOURS[number % len(COLOURS)]
        shift = 0.0 if factor == "model" else (number - (len(models) - 1) / 2) * 0.12
        _draw(axes, model, factor, key, values, colour, shift)
    axes.set_xticks(
        range(len(values)), [drawable(f"{value:g}" if factor == "lr" else str(value), 40) for value in values]
    )
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_xlabel(_HEADINGS[factor])
    axes.set_ylabel("bits per byte" if len(models) > 1 else "nats per token")
    axes.set_title("Loss on held-out texts; dotted: without a soft prompt", loc="left")
    plain_axes(axes, "y")
    if len(models) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


def _draw(
    axes: Axes, model: ModelOutcome, factor: str, key: str, values: Sequence[object], colour: str, shift: float
) -> None:
    done = [run for run in model.runs if run.complete]

    def place(run: Outcome) -> float:
        return values.index(getattr(run.choice, factor)) + shift

    axes.plot([place(run) for run in done], [getattr(run.heldout, key) for run in done], ".", color=colour, alpha=0.35)
    found = sorted(levels(done, factor), key=lambda level: values.index(level.value))
    axes.errorbar(
        [values.index(level.value) + shift for level in found],
        [getattr(level, key) for level in found],
        yerr=[level.spread(key) or 0.0 for level in found],
        color=colour,
        marker="o",
        linestyle="-" if factor in ("tokens", "lr") else "none",
        capsize=3,
        label=drawable(model.model, 40),
    )
    axes.axhline(getattr(model.none, key), color=colour, linewidth=0.8, linestyle=":")
