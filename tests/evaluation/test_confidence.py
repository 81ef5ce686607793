"""Intervals against distributions that are known, and the length of text that a loss is worth."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from sordino.evaluation.confidence import (
    BLOCK_TOKENS,
    MIN_UNITS,
    Estimate,
    Units,
    equivalent_length,
    expanded_tail,
    interval,
    length_in_words,
    mean_estimates,
    resampled_means,
    units_of,
)

LENGTHS = (20, 64, 128, 256, 512)


def test_the_interval_of_a_mean_is_the_one_of_theory() -> None:
    random = np.random.default_rng(0)
    values = random.normal(4.0, 0.5, size=400)
    tokens = np.full(400, 10.0)
    means = resampled_means(values[:, None] * 10, tokens, resamples=10_000, seed=1)
    low, high = interval(means[:, 0], 400)
    width = 2 * 1.96 * values.std() / math.sqrt(400)
    assert (high - low) == pytest.approx(width, rel=0.03)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.003)


@pytest.mark.parametrize(("units", "low", "high"), [(60, 0.93, 0.97), (MIN_UNITS, 0.92, 0.975)])
def test_intervals_hold_the_truth_as_often_as_they_say(units: int, low: float, high: float) -> None:
    """Differences between two conditions are about normal; plain percentiles of six hold the truth 87 times in 100."""
    random = np.random.default_rng(2)
    held = 0
    for trial in range(1000):
        values = random.normal(1.0, 0.5, size=units)
        means = resampled_means(values[:, None], np.ones(units), resamples=1000, seed=trial)
        ends = interval(means[:, 0], units)
        held += ends[0] <= 1.0 <= ends[1]
    assert low <= held / 1000 <= high


def test_the_expansion_is_student_s() -> None:
    # t of 5 and 30 degrees of freedom at 2.5 %: 2.5706 and 2.0423.
    for units, t in ((6, 2.5706), (31, 2.0423)):
        expected = NormalDist().cdf(-t * math.sqrt(units / (units - 1)))
        assert expanded_tail(0.025, units) == pytest.approx(expected, rel=0.02)
    assert expanded_tail(0.025, 10**6) == pytest.approx(0.025, rel=1e-4)


def test_pairing_takes_out_what_makes_a_unit_hard_for_everybody() -> None:
    """The difference is a constant 0.1 whatever is drawn, though the losses themselves scatter widely."""
    hard = np.random.default_rng(3).normal(4.0, 1.0, size=12)
    sums = np.stack([hard, hard + 0.1], axis=1) * 100
    means = resampled_means(sums, np.full(12, 100.0), resamples=2000, seed=0)
    assert np.ptp(interval(means[:, 0], 12)) > 0.5
    np.testing.assert_allclose(interval(means[:, 1] - means[:, 0], 12), 0.1, atol=1e-9)


def test_longer_units_weigh_more() -> None:
    means = resampled_means(np.array([[10.0], [900.0]]), np.array([10.0, 300.0]), resamples=4000, seed=0)
    # Both drawn: (10 + 900) / 310; one of them twice: 1 or 3.
    assert set(np.unique(means.round(9))) == {1.0, round(910 / 310, 9), 3.0}


def test_draws_are_the_seeds() -> None:
    sums, tokens = np.random.default_rng(0).random((7, 2)), np.ones(7)
    first = resampled_means(sums, tokens, resamples=300, seed=5)
    np.testing.assert_array_equal(first, resampled_means(sums, tokens, resamples=300, seed=5))
    assert (first != resampled_means(sums, tokens, resamples=300, seed=6)).any()


def test_many_units_are_drawn_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, tokens = np.random.default_rng(0).random((50, 1)), np.ones(50)
    whole = resampled_means(sums, tokens, resamples=101, seed=0)
    monkeypatch.setattr("sordino.evaluation.confidence._CELLS_AT_ONCE", 500)
    parts = resampled_means(sums, tokens, resamples=101, seed=0)
    assert parts.shape == (101, 1)
    np.testing.assert_allclose(whole, parts, rtol=1e-12)


def test_no_units_and_empty_units_are_errors() -> None:
    for sums, tokens in ((np.zeros((0, 1)), np.zeros(0)), (np.zeros((2, 1)), np.array([1.0, 0.0]))):
        with pytest.raises(ValueError, match="every unit needs a token"):
            resampled_means(sums, tokens, resamples=10, seed=0)


def test_an_interval_may_end_in_infinity() -> None:
    many = 10**6
    assert interval(np.array([1.0] * 90 + [math.inf] * 10), many) == (1.0, math.inf)
    assert interval(np.full(1000, math.inf), many) == (math.inf, math.inf)
    low, high = interval(np.arange(10_001, dtype=float), many)
    assert (low, high) == pytest.approx((250, 9750), abs=1)


def test_a_unit_is_a_piece_where_there_are_some() -> None:
    units = units_of(["a", "a", "b", "c", "d", "e", "f"], [128] * 7)
    assert units.unit_W.tolist() == [0, 0, 1, 2, 3, 4, 5]
    assert units.kind == "piece"
    np.testing.assert_array_equal(units.sums(np.arange(7.0)), [1, 2, 3, 4, 5, 6])


def test_a_unit_is_a_block_of_a_few_long_texts() -> None:
    units = units_of(["a"] * 60 + ["b"] * 12, [128] * 72)
    assert units.unit_W.tolist() == [u for u in range(7) for _ in range(8)] + [7] * 4 + [8] * 8 + [9] * 4
    assert units.kind == f"block of about {BLOCK_TOKENS:,} tokens"
    assert units_of([], []).count == 0


def test_blocks_are_shorter_where_there_is_little_text() -> None:
    units = units_of(["a"] * 16, [128] * 16)
    assert units.count == 8
    assert units.kind == "block of about 256 tokens"


@pytest.mark.parametrize(
    ("loss", "losses", "expected"),
    [
        (4.3, (4.4, 4.3, 4.25, 4.2, 4.1), 64),
        # Half way between two losses is half way between the logarithms of the lengths.
        (4.15, (4.4, 4.3, 4.25, 4.2, 4.1), math.sqrt(256 * 512)),
        (4.275, (4.4, 4.3, 4.25, 4.2, 4.1), math.sqrt(64 * 128)),
        (4.4, (4.4, 4.3, 4.25, 4.2, 4.1), 20),
        (4.41, (4.4, 4.3, 4.25, 4.2, 4.1), 0.0),
        (4.05, (4.4, 4.3, 4.25, 4.2, 4.1), math.inf),
        # The first crossing counts, whatever noise does after it.
        (4.3, (4.4, 4.2, 4.35, 4.1, 4.5), math.sqrt(20 * 64)),
        (4.3, (4.4, 4.45, 4.35, 4.25, 4.5), math.sqrt(128 * 256)),
    ],
)
def test_equivalent_length(loss: float, losses: tuple[float, ...], expected: float) -> None:
    assert equivalent_length(loss, LENGTHS, losses) == pytest.approx(expected, rel=1e-9)


def test_lengths_in_words() -> None:
    assert [length_in_words(tokens, LENGTHS) for tokens in (0.0, 143.2, math.inf)] == ["<20", "143", ">512"]


def test_lines_and_their_differences_share_their_draws() -> None:
    random = np.random.default_rng(0)
    tokens_W = random.integers(5, 20, 40).astype(float)
    hard_W = random.normal(3, 1, 40)
    sums_WL = np.stack([hard_W, hard_W + 0.2], axis=1) * tokens_W[:, None]
    means = mean_estimates(sums_WL, tokens_W, Units(np.arange(40), "row"), resamples=500, seed=0)
    assert means.of(0).value == pytest.approx((hard_W * tokens_W).sum() / tokens_W.sum())
    low, high = means.of(0).interval or (0, 0)
    assert high - low > 0.2
    # What makes a unit hard for both lines cancels.
    assert means.of(1, less=0).value == pytest.approx(0.2)
    assert means.of(1, less=0).interval == pytest.approx((0.2, 0.2))


def test_few_units_give_values_without_intervals() -> None:
    means = mean_estimates(np.ones((3, 1)), np.ones(3), Units(np.arange(3), "row"), resamples=100, seed=0)
    assert means.of(0) == Estimate(1.0, None)
