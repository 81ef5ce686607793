"""What a mixture loses, from its definition."""

from __future__ import annotations

import numpy as np


def mean_nll(nll_NK: np.ndarray, weights_NK: np.ndarray) -> float:
    """Mean NLL in nats an example. weights_NK: [N, K], or [K] for all alike. Each example is scaled by its least loss."""
    least_N1 = nll_NK.min(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        return float((least_N1[:, 0] - np.log((np.exp(least_N1 - nll_NK) * weights_NK).sum(axis=1))).mean())
