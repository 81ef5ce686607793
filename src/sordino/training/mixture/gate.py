"""Weights that depend on the text: p(k|x) = softmax(slope @ h(x) + bias), fitted to the same likelihood as fixed weights.

h(x) has as many numbers as the model is wide, often more than there are examples, so the slope is held back by an L2 penalty whose
strength is chosen on validation. The penalty is on the slope over standardised numbers; where it is strong, what is left is the
bias, which is fixed weights. Nothing is random: full batches, L-BFGS, from zero.

Shape key: N examples, K components, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sordino.evaluation.confidence import Floats
from sordino.forward.combining import nll_of_texts
from sordino.prompts.mixture import Gate

# Weights of the penalty against the mean NLL of an example, strongest first: half a decade apart.
STRENGTHS = tuple(10 ** (-half / 2) for half in range(-4, 9))
_STEPS = 200


@dataclass(frozen=True)
class FittedGate:
    """strength: of the penalty, as chosen. tried: each strength with its validation loss, nats an example."""

    gate: Gate
    strength: float
    tried: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Scored:
    """What a gate learns from: h(x) of every example, and its NLL in nats under every component."""

    hidden_ND: Floats
    nll_NK: Floats


def fit_gate(train: Scored, validation: Scored, weights_K: Floats) -> FittedGate | None:
    """The gate of the strength that is best on validation; None where every example has the same h(x).

    weights_K: the fixed weights, which the search begins with.
    """
    mean_D, scale_D = _standardised(train.hidden_ND)
    if not (scale_D < np.inf).any():
        return None
    seen_ND, other_ND = (torch.from_numpy((s.hidden_ND - mean_D) / scale_D) for s in (train, validation))
    nll_NK, other_nll_NK = torch.from_numpy(train.nll_NK), torch.from_numpy(validation.nll_NK)
    # A weight of zero has no logarithm to begin with; this one is as good as zero.
    bias_K = torch.from_numpy(np.log(np.maximum(weights_K, 1e-6)))
    slope_KD = torch.zeros(len(bias_K), seen_ND.shape[1], dtype=torch.float64)
    tried: list[tuple[float, float]] = []
    found: list[tuple[Tensor, Tensor]] = []
    for strength in STRENGTHS:
        slope_KD, bias_K = _fitted(slope_KD, bias_K, seen_ND, nll_NK, strength)
        tried.append((strength, float(_nll(slope_KD, bias_K, other_ND, other_nll_NK))))
        found.append((slope_KD, bias_K))
    # The first of equals is the strongest.
    best = min(range(len(tried)), key=lambda at: tried[at][1])
    slope, bias = (tensor.numpy() for tensor in found[best])
    plain_KD = slope / scale_D
    return FittedGate(
        Gate(plain_KD.astype(np.float32), (bias - plain_KD @ mean_D).astype(np.float32)), tried[best][0], tuple(tried)
    )


def gate_weights(gate: Gate, hidden_ND: Floats) -> Floats:
    """p(k|x) [N, K]."""
    return np.stack([gate.weights(hidden_D) for hidden_D in hidden_ND])


def _standardised(hidden_ND: Floats) -> tuple[Floats, Floats]:
    """What to take off and divide by, so that a text's numbers have a length of about one; by infinity what never changes."""
    mean_D = hidden_ND.mean(axis=0)
    spread_D = hidden_ND.std(axis=0)
    still_D = spread_D <= 1e-6 * max(float(np.abs(hidden_ND).max()), 1e-30)
    return mean_D, np.where(still_D, np.inf, spread_D * hidden_ND.shape[1] ** 0.5)


def _nll(slope_KD: Tensor, bias_K: Tensor, seen_ND: Tensor, nll_NK: Tensor) -> Tensor:
    return nll_of_texts(nll_NK, torch.log_softmax(seen_ND @ slope_KD.T + bias_K, dim=1)).mean()


def _fitted(
    slope_KD: Tensor, bias_K: Tensor, seen_ND: Tensor, nll_NK: Tensor, strength: float
) -> tuple[Tensor, Tensor]:
    slope_KD, bias_K = slope_KD.clone().requires_grad_(), bias_K.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [slope_KD, bias_K], max_iter=_STEPS, history_size=20, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = _nll(slope_KD, bias_K, seen_ND, nll_NK) + strength / 2 * slope_KD.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return slope_KD.detach(), bias_K.detach()
