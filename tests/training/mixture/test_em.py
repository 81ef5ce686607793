"""Weights by EM: never down, at the optimum an independent solver finds, and well behaved at the edges."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from sordino.training.mixture.em import effective_number, fit_weights
from tests.training.mixture.plain import mean_nll

LOSSES = arrays(
    np.float64,
    st.tuples(st.integers(1, 12), st.integers(1, 5)),
    elements=st.floats(0, 2000, allow_nan=False),
)


@given(LOSSES)
def test_the_likelihood_never_falls(nll_NK: np.ndarray) -> None:
    """A run of n steps is the beginning of a run of n + 1."""
    found = [fit_weights(nll_NK, max_steps=steps, tolerance=0) for steps in range(8)]
    for before, after in pairwise(found):
        assert after.nll <= before.nll + 1e-9 * max(1.0, before.nll)


@given(LOSSES)
def test_weights_are_weights_and_what_is_said_of_them_holds(nll_NK: np.ndarray) -> None:
    fitted = fit_weights(nll_NK, max_steps=200)
    assert (fitted.weights_K >= 0).all()
    assert fitted.weights_K.sum() == pytest.approx(1)
    assert fitted.nll == pytest.approx(mean_nll(nll_NK, fitted.weights_K), rel=1e-9, abs=1e-9)
    # No corner and no middle is better by more than `short_by`.
    for other_K in (*np.eye(nll_NK.shape[1]), np.full(nll_NK.shape[1], 1 / nll_NK.shape[1])):
        assert mean_nll(nll_NK, other_K) >= fitted.nll - fitted.short_by - 1e-8 * max(1.0, fitted.nll)


@pytest.mark.parametrize("seed", range(5))
def test_it_reaches_the_optimum_of_an_independent_solver(seed: int) -> None:
    random = np.random.default_rng(seed)
    nll_NK = random.gamma(3.0, 2.0, size=(60, 4)) + random.normal(0, 1, size=4)
    solved = minimize(
        lambda weights_K: -np.log(np.exp(-nll_NK) @ weights_K).mean(),
        np.full(4, 0.25),
        jac=lambda weights_K: -(np.exp(-nll_NK) / (np.exp(-nll_NK) @ weights_K)[:, None]).mean(axis=0),
        method="SLSQP",
        bounds=[(0, 1)] * 4,
        constraints={"type": "eq", "fun": lambda weights_K: weights_K.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert solved.success
    fitted = fit_weights(nll_NK)
    assert fitted.nll == pytest.approx(solved.fun, abs=1e-6)
    np.testing.assert_allclose(fitted.weights_K, solved.x, atol=2e-3)
    assert fitted.short_by <= 1e-7


def test_texts_of_thousands_of_nats_do_not_underflow() -> None:
    nll_NK = np.array([[5000.0, 5001.0], [9001.0, 9000.0], [7000.0, 7003.0]])
    fitted = fit_weights(nll_NK)
    np.testing.assert_allclose(fitted.weights_K, fit_weights(nll_NK - 5000).weights_K, atol=1e-12)
    assert 0 < fitted.weights_K[1] < 0.5


def test_one_component_gets_everything() -> None:
    fitted = fit_weights(np.array([[3.0], [5.0]]))
    assert fitted.weights_K.tolist() == [1.0]
    assert fitted.nll == 4.0
    assert fitted.steps == 0


def test_identical_components_keep_equal_weights() -> None:
    nll_N1 = np.random.default_rng(0).gamma(3.0, size=(9, 1))
    fitted = fit_weights(np.repeat(nll_N1, 3, axis=1))
    np.testing.assert_allclose(fitted.weights_K, 1 / 3)
    assert fitted.steps == 0
    assert fitted.nll == pytest.approx(nll_N1.mean())


def test_a_component_that_is_worse_everywhere_loses_all_weight() -> None:
    nll_NK = np.random.default_rng(1).gamma(3.0, size=(20, 3)) + np.array([0.0, 0.0, 50.0])
    assert fit_weights(nll_NK).weights_K[2] < 1e-12


@pytest.mark.parametrize("losses", [np.zeros((0, 2)), np.zeros((2, 0)), np.array([[1.0, np.inf]]), np.zeros(3)])
def test_what_are_no_losses_is_refused(losses: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite loss"):
        fit_weights(losses)


def test_the_effective_number_counts_components() -> None:
    assert effective_number(np.array([1.0, 0.0])) == 1
    assert effective_number(np.full(4, 0.25)) == pytest.approx(4)
    assert 1 < effective_number(np.array([0.9, 0.1])) < 2
