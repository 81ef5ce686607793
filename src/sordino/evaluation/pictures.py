"""What all pictures share: colours, plain axes, dots with their intervals, and a figure's bytes as PNG or SVG.

matplotlib reads dollar signs as formulas and its fonts lack most alphabets, and names come from files of strangers: what is drawn
of them goes through `drawable`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sordino.evaluation.distance_report import DistanceLine, DistanceReport, named
from sordino.storage import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

PLAIN, ACCENT, FAINT, BAND = "#33658a", "#c8553d", "#9aa5b1", "#e3ebf2"
# One after another for the lines of a picture.
COLOURS = (PLAIN, ACCENT, "#588157", "#8e6c8a", "#c49a3a")
DPI = 130
_GRID = "#e6e9ed"
_LONGEST = 24


@dataclass(frozen=True)
class Dot:
    """A value with its interval, or none, and its name on the axis."""

    name: str
    value: float
    interval: tuple[float, float] | None = None
    accented: bool = False


def new_figure(width: float, height: float) -> Figure:
    # Importing matplotlib takes half a second, and a server draws only after a training run.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def plain_axes(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """Two spines and a faint grid behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=_GRID, linewidth=0.7, axis=grid)
    axes.set_axisbelow(True)


def whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def draw_dots(axes: Axes, dots: Sequence[Dot], *, with_values: bool = False) -> None:
    """Losses on held-out texts, a line each, the first at the top."""
    for place, dot in enumerate(dots):
        colour = ACCENT if dot.accented else PLAIN
        low, high = dot.interval or (dot.value, dot.value)
        axes.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.45, solid_capstyle="round")
        axes.plot([dot.value], [place], "o", color=colour, markersize=6.5)
        if with_values:
            axes.annotate(
                f"{dot.value:.3f}",
                (dot.value, place),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=colour,
            )
    axes.set_yticks(range(len(dots)), [dot.name for dot in dots], fontsize=9)
    axes.set_ylim(len(dots) - 0.4, -0.8)
    axes.set_title("Loss on held-out texts", loc="left")
    axes.set_xlabel("nats per token; lower is better")


def drawable(text: str, longest: int = _LONGEST) -> str:
    """A text on one line that matplotlib draws as it is: what its font may lack becomes a question mark."""
    line = " ".join(text.split())
    shown = "".join(
        char if char.isprintable() and (ord(char) < 0x250 or 0x370 <= ord(char) < 0x500) else "?" for char in line
    )
    shown = shown if len(shown) <= longest else shown[: longest - 1] + "…"
    return shown.replace("\\", "\\\\").replace("$", r"\$")


def rendered(figure: Figure, ending: str = ".png") -> bytes:
    """The figure as ".png" or ".svg", without date and version. A PNG's bytes are the same each time."""
    import matplotlib

    target = io.BytesIO()
    if ending.lower() == ".svg":
        with matplotlib.rc_context({"svg.hashsalt": "sordino"}):
            figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    else:
        figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def write_picture(figure: Figure, path: Path) -> None:
    """Write a figure as the kind that the path's ending names. Raises StorageError."""
    write_bytes(path, rendered(figure, path.suffix))


# Gains after other text ------------------------------------------------------------------------------------------------

# The first condition is drawn in the accent colour.
_OF_CONDITIONS = (ACCENT, PLAIN, *(colour for colour in COLOURS if colour not in (ACCENT, PLAIN)))


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
                _draw_gains(axes, line, report.distances, _OF_CONDITIONS[at % len(_OF_CONDITIONS)])
        axes.axhline(0, color=FAINT, linewidth=1)
        axes.set_xticks(range(len(report.distances)), [f"{distance:,}" for distance in report.distances])
        axes.set_xlabel("tokens of text between")
        axes.set_title(drawable(f"after {named(between, writer)}", 48), loc="left", fontsize=10)
        plain_axes(axes)
        axes.tick_params(labelsize=8)
    all_axes[0].set_ylabel("gain, nats per token")
    all_axes[0].legend(frameon=False, fontsize=8)
    return figure


def _draw_gains(axes: Axes, line: DistanceLine, distances: Sequence[int], colour: str) -> None:
    # Distances stand side by side: on a scale of tokens, the short ones would be one point.
    places = [distances.index(distance) for distance in line.gains]
    values = [gain.value for gain in line.gains.values()]
    style = "-" if line.kind == "soft prompt" else "--"
    axes.plot(places, values, style, color=colour, marker="o", markersize=4, label=drawable(line.heading, 36))
    spreads = [gain.interval for gain in line.gains.values()]
    if all(spread is not None for spread in spreads):
        low, high = zip(*(spread for spread in spreads if spread is not None), strict=True)
        axes.fill_between(places, low, high, color=colour, alpha=0.08, linewidth=0)
