"""The report as a picture: losses with their intervals, and the weights.

It holds no text from files: matplotlib would read dollar signs as formulas, and its fonts lack most alphabets. Components are
numbered as they were given.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from sordino.evaluation.pictures import FAINT, Dot, draw_dots, new_figure, plain_axes
from sordino.training.mixture.report import MixtureLine, MixtureReport

_TITLES = {
    "mean": "components' mean",
    "ensemble": "ensemble,\nequal weights",
    "uniform": "mixture,\nequal weights",
    "mixture": "mixture,\nfitted weights",
    "gate": "mixture,\nweights by the text",
}


def report_figure(report: MixtureReport) -> Figure:
    count = len(report.weights_K)
    figure = new_figure(10, max(3.5, 0.42 * len(report.lines) + 1))
    losses, weights = figure.subplots(1, 2, width_ratios=[3, 1])
    # The best component is among the components.
    shown = [(at, line) for at, line in enumerate(report.lines) if line.kind != "best"]
    draw_dots(
        losses,
        [
            Dot(_title(at, line), line.nll.value, line.nll.interval, accented=line.kind in ("mixture", "gate"))
            for at, line in shown
        ],
    )
    weights.barh(range(count), report.weights_K, color=FAINT)
    weights.set_yticks(range(count), [f"component {k + 1}" for k in range(count)], fontsize=9)
    weights.invert_yaxis()
    weights.set_xlim(0, 1)
    weights.set_title(f"Weights (as many as {report.effective:.1f})", loc="left")
    for axes in (losses, weights):
        plain_axes(axes, "x")
    return figure


def _title(at: int, line: MixtureLine) -> str:
    return f"component {at + 1}" if line.kind == "component" else _TITLES[line.kind]
