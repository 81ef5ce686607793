"""The report as a picture: losses with their intervals, and the weights.

It holds no text from files: matplotlib would read dollar signs as formulas, and its fonts lack most alphabets. Components are
numbered as they were given.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sordino.training.mixture.report import MixtureLine, MixtureReport

_PLAIN, _ACCENT, _FAINT = "#33658a", "#c8553d", "#9aa5b1"
_TITLES = {
    "mean": "components' mean",
    "ensemble": "ensemble,\nequal weights",
    "uniform": "mixture,\nequal weights",
    "mixture": "mixture,\nfitted weights",
    "gate": "mixture,\nweights by the text",
}


def report_figure(report: MixtureReport) -> Figure:
    count = len(report.weights_K)
    figure = Figure(figsize=(10, max(3.5, 0.42 * len(report.lines) + 1)), dpi=130, layout="constrained")
    losses, weights = figure.subplots(1, 2, width_ratios=[3, 1])
    _draw_losses(losses, report)
    weights.barh(range(count), report.weights_K, color=_FAINT)
    weights.set_yticks(range(count), [f"component {k + 1}" for k in range(count)], fontsize=9)
    weights.invert_yaxis()
    weights.set_xlim(0, 1)
    weights.set_title(f"Weights (as many as {report.effective:.1f})", loc="left")
    for axes in (losses, weights):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#e6e9ed", linewidth=0.7)
        axes.set_axisbelow(True)
    return figure


def _draw_losses(axes: Axes, report: MixtureReport) -> None:
    # The best component is among the components.
    shown = [(at, line) for at, line in enumerate(report.lines) if line.kind != "best"]
    for place, (_, line) in enumerate(shown):
        colour = _ACCENT if line.kind in ("mixture", "gate") else _PLAIN
        low, high = line.nll.interval or (line.nll.value, line.nll.value)
        axes.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.45, solid_capstyle="round")
        axes.plot([line.nll.value], [place], "o", color=colour, markersize=6)
    axes.set_yticks(range(len(shown)), [_title(at, line) for at, line in shown], fontsize=9)
    axes.invert_yaxis()
    axes.set_title("Loss on held-out texts", loc="left")
    axes.set_xlabel("nats per token; lower is better")


def _title(at: int, line: MixtureLine) -> str:
    return f"component {at + 1}" if line.kind == "component" else _TITLES[line.kind]
