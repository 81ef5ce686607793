"""The gains after other text as a picture: one part for each kind of text, a line for each condition."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sordino.evaluation.distance_report import DistanceLine, DistanceReport, named
from sordino.evaluation.pictures import ACCENT, COLOURS, FAINT, PLAIN, drawable, new_figure, plain_axes

# The first condition is drawn in the accent colour.
_COLOURS = (ACCENT, PLAIN, *(colour for colour in COLOURS if colour not in (ACCENT, PLAIN)))


def distance_figure(report: DistanceReport) -> Figure:
    """Gains over the distance, with their intervals."""
    kinds = list(dict.fromkeys((line.between, line.writer) for line in report.lines))
    figure = new_figure(1.2 + 3.4 * len(kinds), 4)
    all_axes: Sequence[Axes] = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    headings = list(dict.fromkeys(line.heading for line in report.lines))
    for axes, (between, writer) in zip(all_axes, kinds, strict=True):
        for line in report.lines:
            if (line.between, line.writer) == (between, writer):
                at = headings.index(line.heading)
                _draw(axes, line, report.distances, _COLOURS[at % len(_COLOURS)])
        axes.axhline(0, color=FAINT, linewidth=1)
        axes.set_xticks(range(len(report.distances)), [f"{distance:,}" for distance in report.distances])
        axes.set_xlabel("tokens of text between")
        axes.set_title(drawable(f"after {named(between, writer)}", 48), loc="left", fontsize=10)
        plain_axes(axes)
        axes.tick_params(labelsize=8)
    all_axes[0].set_ylabel("gain, nats per token")
    all_axes[0].legend(frameon=False, fontsize=8)
    return figure


def _draw(axes: Axes, line: DistanceLine, distances: Sequence[int], colour: str) -> None:
    # Distances stand side by side: on a scale of tokens, the short ones would be one point.
    places = [distances.index(distance) for distance in line.gains]
    values = [gain.value for gain in line.gains.values()]
    style = "-" if line.kind == "soft prompt" else "--"
    axes.plot(places, values, style, color=colour, marker="o", markersize=4, label=drawable(line.heading, 36))
    spreads = [gain.interval for gain in line.gains.values()]
    if all(spread is not None for spread in spreads):
        low, high = zip(*(spread for spread in spreads if spread is not None), strict=True)
        axes.fill_between(places, low, high, color=colour, alpha=0.08, linewidth=0)
