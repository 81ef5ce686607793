"""Weights alone, by expectation maximisation: the components stay as they are (Qin & Eisner 2021, arXiv 2104.06599).

    r_nk = w_k p_k(y_n|x_n) / sum_j w_j p_j(y_n|x_n)        w_k = mean of r_nk over n

The log-likelihood is concave in the weights, so there is one best value, and a step of EM never makes it smaller. Because it is
concave it lies under its tangents: no weights give more than log(max_k G_k) nats an example more than w does, where
G_k = mean of p_k / sum_j w_j p_j. So how far is still to go is known at every step, and that is when to stop.

Shape key: N examples, K components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sordino.evaluation.confidence import Floats

# Nats an example that the weights may be short of the best: far below what any data can tell apart.
TOLERANCE = 1e-7
MAX_STEPS = 50_000


@dataclass(frozen=True)
class Weights:
    """weights_K: sum to one. nll: mean in nats an example under them. short_by: no weights give a mean that is lower by more.
    steps: of EM.
    """

    weights_K: Floats
    nll: float
    short_by: float
    steps: int


def fit_weights(nll_NK: Floats, *, tolerance: float = TOLERANCE, max_steps: int = MAX_STEPS) -> Weights:
    """The weights of the highest likelihood, from each example's NLL in nats under each component.

    Raises ValueError for numbers that are not finite, and where there is no example.
    """
    if nll_NK.ndim != 2 or 0 in nll_NK.shape or not np.isfinite(nll_NK).all():
        raise ValueError("EM wants a finite loss of every example under every component, and at least one of each")
    count = nll_NK.shape[1]
    weights_K = np.full(count, 1 / count)
    # Each example relative to its likeliest component: of texts of hundreds of nats nothing else survives exp.
    least_N1 = nll_NK.min(axis=1, keepdims=True)
    likely_NK = np.exp(least_N1 - nll_NK)
    for step in range(max_steps + 1):
        total_N = likely_NK @ weights_K
        gain_K = (likely_NK / total_N[:, None]).mean(axis=0)
        short_by = max(0.0, math.log(gain_K.max()))
        if short_by <= tolerance or step == max_steps:
            break
        weights_K = weights_K * gain_K
        weights_K /= weights_K.sum()
    nll = float((least_N1[:, 0] - np.log(total_N)).mean())
    return Weights(weights_K, nll, short_by, step)


def effective_number(weights_K: Floats) -> float:
    """How many components carry weight: exp of the weights' entropy, 1 to K."""
    some = weights_K[weights_K > 0]
    return float(np.exp(-(some * np.log(some)).sum()))
