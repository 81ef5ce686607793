"""Pictures of an inspection, of the path between two soft prompts, and of loss against length.

Shape key: L layers, P virtual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from sordino.evaluation.analysis.inspection import Depth, Inspection
from sordino.evaluation.analysis.path import BlendPath
from sordino.evaluation.analysis.pruning import Stage
from sordino.evaluation.pictures import (
    ACCENT,
    BAND,
    COLOURS,
    FAINT,
    PLAIN,
    drawable,
    new_figure,
    plain_axes,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# With more virtual tokens than this, only some are labelled with their word.
_NAMED = 40


# Inspection -----------------------------------------------------------------------------------------------------------


def inside_figure(insides: Sequence[Inspection], similarity_KK: NDArray[np.float64] | None = None) -> Figure:
    """A band for each soft prompt: costs of leaving tokens out, norms, attention. Below, their similarity, if given."""
    deep = any(inside.depth for inside in insides)
    heights = [0.19 * min(inside.prompt.n_tokens, _NAMED) + 1.6 for inside in insides]
    square = 0.5 * len(insides) + 1.8 if similarity_KK is not None else 0
    figure = new_figure(11 if deep else 6.5, sum(heights) + square)
    ratios = [*heights, *([square] if square else [])]
    bands = figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
    for band, inside in zip(bands, insides, strict=False):
        band.suptitle(drawable(inside.label, 60), x=0.01, ha="left", fontsize=12, fontweight="bold")
        if inside.depth is None:
            _draw_norms(band.subplots(), inside, named=True)
            continue
        grid = band.add_gridspec(2, 3, height_ratios=[1, 3.2], width_ratios=[1.1, 0.7, 1.4])
        costs = band.add_subplot(grid[:, 0])
        _draw_costs(costs, inside, inside.depth)
        _draw_norms(band.add_subplot(grid[:, 1], sharey=costs), inside, named=False)
        layers = band.add_subplot(grid[0, 2])
        _draw_layers(layers, inside.depth)
        _draw_attention(band.add_subplot(grid[1, 2], sharex=layers), inside.depth)
    if similarity_KK is not None:
        _draw_similarity(bands[-1].subplots(), [inside.label for inside in insides], similarity_KK)
    return figure


def _draw_costs(axes: Axes, inside: Inspection, depth: Depth) -> None:
    costs = depth.importance.costs
    colours = [ACCENT if cost > 0 else FAINT for cost in costs]
    axes.barh(range(1, len(costs) + 1), costs, color=colours, height=0.75)
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.set_title("left out, the loss changes by", loc="left", fontsize=9)
    axes.set_xlabel("nats per token", fontsize=8)
    _name_tokens(axes, inside)
    _small(axes)


def _draw_norms(axes: Axes, inside: Inspection, *, named: bool) -> None:
    surface = inside.surface
    low, middle, high = surface.vocabulary
    axes.axvspan(low, high, color=BAND)
    axes.axvline(middle, color=FAINT, linewidth=0.8)
    axes.plot(surface.norms_P, range(1, len(surface.norms_P) + 1), "o", color=PLAIN, markersize=3.5)
    axes.set_xlim(left=0)
    axes.set_title("norm (band: 90 % of words)", loc="left", fontsize=9)
    axes.set_xlabel("norm of the vector", fontsize=8)
    if named:
        _name_tokens(axes, inside)
    else:
        axes.tick_params(labelleft=False)
    _small(axes)


def _draw_layers(axes: Axes, depth: Depth) -> None:
    shares_L = depth.attention.by_layer_L
    axes.bar(range(1, len(shares_L) + 1), shares_L, color=PLAIN, width=0.8)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title("share of the text's attention on the prompt", loc="left", fontsize=9)
    axes.tick_params(labelbottom=False)
    _small(axes)


def _draw_attention(axes: Axes, depth: Depth) -> None:
    shares_PL = depth.attention.shares_LP.T
    tokens, layers = shares_PL.shape
    image = axes.imshow(
        shares_PL,
        aspect="auto",
        cmap="Blues",
        vmin=0,
        extent=(0.5, layers + 0.5, tokens + 0.5, 0.5),
        interpolation="nearest",
    )
    axes.set_xlabel("layer", fontsize=8)
    axes.set_ylabel("virtual token", fontsize=8)
    whole_numbers(axes.xaxis)
    whole_numbers(axes.yaxis)
    axes.tick_params(labelsize=8)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.9, pad=0.01, format=PercentFormatter(1.0))
    bar.ax.tick_params(labelsize=7)


def _draw_similarity(axes: Axes, labels: Sequence[str], similarity_KK: NDArray[np.float64]) -> None:
    axes.imshow(similarity_KK, cmap="RdBu_r", vmin=-1, vmax=1)
    names = [drawable(label) for label in labels]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    for row, values in enumerate(similarity_KK):
        for column, value in enumerate(values):
            ink = "white" if abs(value) > 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_title("how alike: cosine of the mean vectors", loc="left", fontsize=9)


def _name_tokens(axes: Axes, inside: Inspection) -> None:
    """Label virtual tokens with number and nearest word, the first at the top."""
    count = inside.prompt.n_tokens
    step = max(1, -(-count // _NAMED))
    shown = range(1, count + 1, step)
    words = [inside.surface.by_cosine[at - 1][0][0] for at in shown]
    # A sign for white space.
    words = [drawable(word, 14) or ("⏎" if "\n" in word or "\r" in word else "␣") for word in words]
    axes.set_yticks(list(shown), [f"{word}  {at}" for word, at in zip(words, shown, strict=True)], fontsize=7)
    axes.set_ylim(count + 0.7, 0.3)


# Paths and lengths ----------------------------------------------------------------------------------------------------


def path_figure(path: BlendPath, first: str, second: str, chosen: float | None = None) -> Figure:
    """Loss of each text over the share of the second prompt, and without a prompt."""
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot()
    for at, (label, losses) in enumerate(path.losses.items()):
        colour = COLOURS[at % len(COLOURS)]
        axes.plot(path.shares, losses, color=colour, marker="o", markersize=4, label=drawable(label))
        axes.axhline(path.without[label], color=colour, linewidth=1, linestyle=":")
    if chosen is not None:
        axes.axvline(chosen, color=FAINT, linewidth=1)
    axes.plot([], [], color=FAINT, linestyle=":", label="without a prompt")
    axes.set_xlabel(
        f"{drawable(first)}   \N{LEFTWARDS ARROW} share of the second \N{RIGHTWARDS ARROW}   {drawable(second)}"
    )
    axes.set_ylabel("nats per token")
    axes.set_title(f"Loss along the path ({path.how})", loc="left")
    axes.legend(frameon=False, fontsize=9)
    _small(axes)
    return figure


def pruning_figure(stages: Sequence[Stage], chosen: Stage) -> Figure:
    """Loss against length, on the text that the choice used and on the held-out text."""
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot()
    lengths = [len(stage.kept) for stage in stages]
    axes.plot(
        lengths, [stage.loss for stage in stages], color=FAINT, marker="o", markersize=3.5, label="text that chose"
    )
    others = [stage.heldout for stage in stages if stage.heldout is not None]
    if others:
        axes.plot(lengths, others, color=PLAIN, marker="o", markersize=3.5, label="held-out text")
    axes.plot([len(chosen.kept)], [chosen.judged], "*", color=ACCENT, markersize=13, label=f"kept: {len(chosen.kept)}")
    axes.invert_xaxis()
    whole_numbers(axes.xaxis)
    axes.set_xlabel("virtual tokens left")
    axes.set_ylabel("nats per token")
    axes.set_title("Loss against length", loc="left")
    axes.legend(frameon=False, fontsize=9)
    _small(axes)
    return figure


def _small(axes: Axes) -> None:
    plain_axes(axes)
    axes.tick_params(labelsize=8)
