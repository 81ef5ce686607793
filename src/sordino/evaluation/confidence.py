"""How sure a measured loss is, and how much real text a soft prompt is worth: pure functions over numbers.

A loss is a sum over tokens divided by their number. Tokens of one text are alike, so the bootstrap resamples units: pieces, or
blocks of a piece. Each draw takes the same units for every condition, so that what makes a unit hard for all of them cancels in
their differences (paired bootstrap; Efron & Tibshirani 1993, chapters 8 and 13: percentile intervals). With few units plain
percentiles are too narrow, so they are expanded to Student's t (Hesterberg 2015, "What teachers should know about the bootstrap",
section 5). With fewer than MIN_UNITS that does not hold either, and there is no interval.

Shape key: U units, C conditions, L lines of a report, R resamples, W windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

# Fewer pieces than this are cut into blocks, and fewer units give no interval: four units all agree by chance one time in eight.
MIN_UNITS = 6
# Blocks have this length, or less where it would give fewer than ENOUGH_UNITS.
BLOCK_TOKENS = 1024
ENOUGH_UNITS = 8
LEVEL = 0.95
_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, None where there is too little text for one."""

    value: float
    interval: Interval | None

    @property
    def excludes_zero(self) -> bool:
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


@dataclass(frozen=True)
class LineEstimates:
    """One measure of every line of a report. drawn_RL: its values over the draws, None with fewer than MIN_UNITS units."""

    value_L: Floats
    drawn_RL: Floats | None
    units: int

    def of(self, line: int, *, less: int | None = None) -> Estimate:
        """The measure of a line, or its difference to line `less` over the same draws."""
        value = float(self.value_L[line] - (0 if less is None else self.value_L[less]))
        if self.drawn_RL is None:
            return Estimate(value, None)
        drawn_R = self.drawn_RL[:, line] - (0 if less is None else self.drawn_RL[:, less])
        return Estimate(value, interval(drawn_R, self.units))


@dataclass(frozen=True)
class Units:
    """unit_W: the unit of each window, from 0. kind: what a unit is, for the user."""

    unit_W: NDArray[np.int64]
    kind: str

    @property
    def count(self) -> int:
        return int(self.unit_W.max()) + 1 if len(self.unit_W) else 0

    def sums(self, values: Floats) -> Floats:
        """[W] or [W, C] summed within units: [U] or [U, C]."""
        totals = np.zeros((self.count, *values.shape[1:]))
        np.add.at(totals, self.unit_W, values)
        return totals


def units_of(pieces: Sequence[str], tokens: Sequence[int]) -> Units:
    """The unit of each window, given its piece's name and its number of targets; windows of a piece are neighbours.

    A unit is a piece, or with fewer than MIN_UNITS of them a run of windows of one piece with BLOCK_TOKENS targets, or fewer.
    """
    by_block = len(set(pieces)) < MIN_UNITS
    block = min(BLOCK_TOKENS, max(1, sum(tokens) // ENOUGH_UNITS))
    unit_of_window: list[int] = []
    unit, filled = -1, 0
    for at, (piece, count) in enumerate(zip(pieces, tokens, strict=True)):
        if at == 0 or piece != pieces[at - 1] or (by_block and filled >= block):
            unit, filled = unit + 1, 0
        unit_of_window.append(unit)
        filled += count
    kind = f"block of about {block:,} tokens" if by_block else "piece"
    return Units(np.array(unit_of_window, dtype=np.int64), kind)


def mean_estimates(sums_WL: Floats, tokens_W: Floats, units: Units, *, resamples: int, seed: int) -> LineEstimates:
    """Each line's mean per token, from its sums and the number of tokens of every window. Raises as `resampled_means`."""
    drawn_RL = None
    if units.count >= MIN_UNITS:
        drawn_RL = resampled_means(units.sums(sums_WL), units.sums(tokens_W), resamples=resamples, seed=seed)
    return LineEstimates(sums_WL.sum(axis=0) / tokens_W.sum(), drawn_RL, units.count)


def resampled_means(sums_UC: Floats, tokens_U: Floats, *, resamples: int, seed: int) -> Floats:
    """The loss per token [R, C] of `resamples` draws of U units with replacement, the same units for every condition.

    The same seed gives the same draws. Raises ValueError without units.
    """
    if len(tokens_U) == 0 or not tokens_U.all():
        raise ValueError("every unit needs a token")
    return np.concatenate(
        [
            (times_rU @ sums_UC) / (times_rU @ tokens_U)[:, None]
            for times_rU in times_drawn(len(tokens_U), resamples=resamples, seed=seed)
        ]
    )


def times_drawn(units: int, *, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each unit was drawn, [r, U] at a time: distributed as drawn indices are, and summed by a matrix product."""
    random = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // units)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        yield random.multinomial(units, np.full(units, 1 / units), size=size).astype(float)


def interval(values_R: Floats, units: int) -> Interval:
    """The middle LEVEL of values resampled from `units` units, expanded for their number. An end may be infinite."""
    tail = expanded_tail((1 - LEVEL) / 2, units)
    ordered = np.sort(values_R)
    last = len(ordered) - 1
    return float(ordered[math.floor(tail * last)]), float(ordered[math.ceil((1 - tail) * last)])


def brackets(interval: Interval | None, form: str, *, times: float = 1) -> str:
    """An interval for people, `[1.2, 3.4]`, its ends in the given form; "" for none."""
    return "" if interval is None else f"[{', '.join(form.format(times * end) for end in interval)}]"


@dataclass(frozen=True)
class Table:
    """columns: headings; those of numbers begin with "#". rows: cells as text, which may be a stranger's."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""

    def plain(self) -> list[str]:
        """As lines of text."""
        every = [[head.removeprefix("#") for head in self.columns], *self.rows]
        pads = [str.rjust if head.startswith("#") else str.ljust for head in self.columns]
        widths = [max(map(len, column)) for column in zip(*every, strict=True)]
        return [
            "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)).rstrip()
            for row in every
        ]


def cells(estimate: Estimate | None, form: str, *, times: float = 1) -> tuple[str, str]:
    """Two cells of a table: an estimate's value in the given form, and its interval as `brackets`; both empty for None."""
    if estimate is None:
        return "", ""
    return form.format(times * estimate.value), brackets(estimate.interval, form, times=times)


def expanded_tail(tail: float, units: int) -> float:
    """The share to cut off at each end of a bootstrap distribution for `tail` of Student's t with `units` - 1 degrees of freedom.

    The bootstrap's own distribution is normal, and narrower by sqrt((U - 1) / U).
    """
    z = -NormalDist().inv_cdf(tail)
    v = units - 1
    # Cornish-Fisher expansion of t's quantile: within 0.3 % from 5 degrees of freedom on.
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return NormalDist().cdf(-t * math.sqrt(units / v))


def equivalent_length(loss: float, lengths: Sequence[int], losses: Sequence[float]) -> float:
    """How many tokens of real text give `loss`: where the curve through (log2 length, loss) first falls to it.

    lengths: ascending. 0.0 means fewer than lengths[0], infinity more than lengths[-1]. A rise after the first crossing is noise
    of the excerpts and is ignored.
    """
    if loss >= losses[0]:
        return 0.0 if loss > losses[0] else float(lengths[0])
    for at in range(1, len(lengths)):
        if losses[at] <= loss:
            part = (losses[at - 1] - loss) / (losses[at - 1] - losses[at])
            low, high = math.log2(lengths[at - 1]), math.log2(lengths[at])
            return float(2 ** (low + part * (high - low)))
    return math.inf


def length_in_words(tokens: float, lengths: Sequence[int]) -> str:
    """An equivalent length for people: "143", "<20" or ">512"."""
    if tokens == 0.0:
        return f"<{lengths[0]}"
    return f">{lengths[-1]}" if math.isinf(tokens) else f"{tokens:.0f}"
