"""Measures of a closed set, worked out by hand; intervals paired by row; ensembles."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sordino.evaluation.classification import Answers, closed, confusion, ensembled, majority, summarise

RIGHT = np.array([0, 0, 1, 1, 2, 2, 0, 1])
# The probability of each label, row by row.
SAID = np.array(
    [
        [0.7, 0.2, 0.1],
        [0.3, 0.4, 0.3],
        [0.1, 0.8, 0.1],
        [0.5, 0.25, 0.25],
        [0.05, 0.05, 0.9],
        [0.2, 0.45, 0.35],
        [0.95, 0.03, 0.02],
        [0.15, 0.72, 0.13],
    ]
)


def line(kind: str, label: str, said: np.ndarray, **more: object) -> Answers:
    return Answers(kind, label, 3, np.log(said), **more)  # type: ignore[arg-type]


def test_every_measure_by_hand() -> None:
    (found,) = summarise([line("soft prompt", "a", SAID)], RIGHT, np.ones(8, int), resamples=200, seed=0)
    assert found.accuracy.value == 5 / 8
    # TP, FP, FN: label 0: 2, 1, 1; label 1: 2, 2, 1; label 2: 1, 0, 1.
    assert found.macro_f1.value == pytest.approx((4 / 6 + 4 / 7 + 2 / 3) / 3)
    assert found.confusion == ((2, 1, 0), (1, 2, 0), (0, 1, 1))
    assert found.nll.value == pytest.approx(-np.log(SAID[np.arange(8), RIGHT]).mean())
    # Bins: .7 and .72 (both right), .4 and .45 (both wrong), .8 right, .5 wrong, .9 and .95 right.
    gaps = [0.3 + 0.28, 0.85, 0.2, 0.5, 0.1 + 0.05]
    assert found.calibration_error.value == pytest.approx(sum(gaps) / 8)
    low, high = found.accuracy.interval or (1, 0)
    assert 0 <= low <= 5 / 8 <= high <= 1


def test_a_label_that_never_occurs_is_left_out_of_macro_f1() -> None:
    said = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    (found,) = summarise([line("soft prompt", "a", said)], np.array([0, 1]), np.ones(2, int), resamples=100, seed=0)
    assert found.macro_f1.value == 1
    # Two rows are too few to draw from.
    assert found.accuracy.interval is None


def test_differences_are_paired_by_row() -> None:
    random = np.random.default_rng(0)
    right = random.integers(0, 2, 400)
    hit = random.random(400) < 0.8
    # One that says the same but for ten rows that it has wrong.
    worse = hit & ~np.isin(np.arange(400), np.flatnonzero(hit)[:10])

    def said(hits: np.ndarray) -> np.ndarray:
        first = np.where((right == 0) == hits, 0.9, 0.1)
        return np.column_stack([first, 1 - first])

    lines = [line("soft prompt", "a", said(hit)), line("no prompt", "no prompt", said(worse))]
    _, other = summarise(lines, right, np.ones(400, int), resamples=2000, seed=0)
    less = other.differences["a"]
    assert less.value == pytest.approx(10 / 400)
    low, high = less.interval or (0, 0)
    # Unpaired, 400 rows at 0.8 could not tell 0.025 from nothing (its interval is +-0.055).
    assert 0.01 < low < less.value < high < 0.045


def test_the_mean_of_members_is_the_mean_of_their_measures() -> None:
    random = np.random.default_rng(1)
    right = random.integers(0, 3, 60)
    members = [line("soft prompt", str(n), random.dirichlet(np.ones(3), 60)) for n in range(3)]
    mean = Answers("mean member", "3 soft prompts", 3, members[0].logp_NL, members=(0, 1, 2))
    *single, averaged = summarise([*members, mean], right, np.ones(60, int), resamples=200, seed=0)
    for name in ("accuracy", "macro_f1", "calibration_error", "nll"):
        assert getattr(averaged, name).value == pytest.approx(np.mean([getattr(one, name).value for one in single]))
    assert sum(averaged.differences[str(n)].value for n in range(3)) == pytest.approx(0, abs=1e-12)
    assert averaged.confusion == ()


def test_nll_of_a_label_and_of_a_token_are_those_among_all_texts() -> None:
    said = SAID * 0.01
    raw = np.log(said[np.arange(8), RIGHT])
    tokens = np.array([1, 2, 3])[RIGHT]
    (found,) = summarise(
        [Answers("soft prompt", "a", 3, closed(np.log(said)), raw)], RIGHT, tokens, resamples=100, seed=0
    )
    assert found.nll.value == pytest.approx(-np.log(SAID[np.arange(8), RIGHT]).mean())
    assert found.nll_per_label == pytest.approx(-raw.mean())
    assert found.nll_per_token == pytest.approx(-raw.sum() / sum([1, 2, 3][right] for right in RIGHT))


def test_the_majority_knows_only_how_often_labels_occur() -> None:
    logp = majority(np.array([1, 1, 1, 0]), 3, rows=2)
    np.testing.assert_allclose(np.exp(logp), [[2 / 7, 4 / 7, 1 / 7]] * 2)


def test_three_ways_to_decide_together() -> None:
    sure, unsure = np.log([[0.98, 0.02]]), np.log([[0.4, 0.6]])
    np.testing.assert_allclose(np.exp(ensembled([sure, unsure, unsure], "probabilities"))[0, 0], (0.98 + 0.8) / 3)
    odds = (math.log(0.98 / 0.02) + 2 * math.log(0.4 / 0.6)) / 3
    np.testing.assert_allclose(ensembled([sure, unsure, unsure], "logits")[0] @ [1, -1], odds)
    # Two of three vote for the second label, though the mean is for the first.
    assert ensembled([sure, unsure, unsure], "vote").argmax() == 1
    assert ensembled([sure, unsure, unsure], "probabilities").argmax() == 0


def test_confusion_counts_every_row() -> None:
    assert np.sum(confusion(np.log(SAID), RIGHT)) == 8
