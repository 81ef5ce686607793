"""Weights that depend on the text: found where there is something to find, held back where there is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sordino.training.mixture.em import fit_weights
from sordino.training.mixture.gate import STRENGTHS, FittedGate, Scored, fit_gate, gate_weights
from tests.training.mixture.plain import mean_nll


def data(seed: int, count: int = 200, width: int = 12, *, telling: float = 3.0) -> Scored:
    """Half of the texts suit one component, half the other; two of the numbers of h(x) say which, `telling` times their noise."""
    random = np.random.default_rng(seed)
    side_N = random.integers(2, size=count)
    hidden_ND = random.normal(0, [1, 5, 0.1] * (width // 3), size=(count, width))
    hidden_ND[:, 3] += telling * (side_N - 0.5)
    hidden_ND[:, 4] += 7 + 5 * telling * (side_N - 0.5)
    nll_NK = random.gamma(4.0, 2.0, size=(count, 1)) + 4.0 * (side_N[:, None] != np.arange(2))
    return Scored(hidden_ND, nll_NK)


def fitted(train: Scored, validation: Scored) -> FittedGate:
    found = fit_gate(train, validation, fit_weights(train.nll_NK).weights_K)
    assert found is not None
    return found


def test_it_finds_what_the_text_says() -> None:
    train, validation, heldout = (data(seed) for seed in range(3))
    found = fitted(train, validation)
    fixed = mean_nll(heldout.nll_NK, fit_weights(train.nll_NK).weights_K)
    gated = mean_nll(heldout.nll_NK, gate_weights(found.gate, heldout.hidden_ND))
    assert gated < fixed - 0.3
    assert found.strength == min(found.tried, key=lambda pair: pair[1])[0]


def test_where_the_text_says_nothing_it_is_fixed_weights() -> None:
    train, validation, heldout = (data(seed, telling=0.0) for seed in range(3))
    weights_K = fit_weights(train.nll_NK).weights_K
    given_NK = gate_weights(fitted(train, validation).gate, heldout.hidden_ND)
    assert mean_nll(heldout.nll_NK, given_NK) == pytest.approx(mean_nll(heldout.nll_NK, weights_K), abs=0.02)


def test_the_strongest_penalty_leaves_the_weights_of_em() -> None:
    train = data(0)
    weights_K = fit_weights(train.nll_NK).weights_K
    # Validation in which the sides are swapped, so that every slope does harm.
    found = fitted(train, Scored(train.hidden_ND, train.nll_NK[:, ::-1].copy()))
    assert found.strength == STRENGTHS[0]
    assert np.abs(gate_weights(found.gate, train.hidden_ND).mean(axis=0) - weights_K).max() < 0.05


def test_it_is_at_a_stationary_point_of_the_penalised_likelihood() -> None:
    """Written out again in the standardised numbers: the gradient is zero."""
    train = data(0)
    found = fitted(train, data(1))
    mean_D, spread_D = train.hidden_ND.mean(axis=0), train.hidden_ND.std(axis=0)
    scale_D = spread_D * train.hidden_ND.shape[1] ** 0.5
    slope_KD = torch.from_numpy(found.gate.slope_KD.astype(float) * scale_D).requires_grad_()
    bias_K = torch.from_numpy(found.gate.bias_K + found.gate.slope_KD.astype(float) @ mean_D).requires_grad_()
    seen_ND = torch.from_numpy((train.hidden_ND - mean_D) / scale_D)
    weights_NK = torch.softmax(seen_ND @ slope_KD.T + bias_K, dim=1)
    loss = -(weights_NK * torch.from_numpy(-train.nll_NK).exp()).sum(1).log().mean()
    (loss + found.strength / 2 * slope_KD.square().sum()).backward()
    assert float(slope_KD.grad.norm()) < 1e-4
    assert float(bias_K.grad.norm()) < 1e-4


def test_the_same_data_give_the_same_gate() -> None:
    first, second = (fitted(data(0), data(1)).gate for _ in range(2))
    np.testing.assert_array_equal(first.slope_KD, second.slope_KD)


def test_texts_that_are_all_alike_have_no_gate() -> None:
    nll_NK = data(0).nll_NK
    assert fit_gate(Scored(np.zeros((200, 12)), nll_NK), data(1), np.array([0.5, 0.5])) is None


def test_a_weight_of_zero_is_no_reason_to_fail() -> None:
    found = fit_gate(data(0), data(1), np.array([0.0, 1.0]))
    assert found is not None
    assert np.isfinite(found.gate.slope_KD).all()
