"""Which of the tokens that are still possible stay: the steps of sampling that leave some out.

Shape key: C candidates, likeliest first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sordino.engine.config import TFS, TOP_A, TOP_K, TOP_P, TYPICAL, Sampling
from sordino.engine.samplers import Floats, Mask


def keep_top_k(probs_C: Floats, sampling: Sampling) -> Mask:
    return np.arange(len(probs_C)) < sampling.top_k


def keep_top_p(probs_C: Floats, sampling: Sampling) -> Mask:
    before_C = np.cumsum(probs_C) - probs_C
    keep_C: Mask = (before_C < sampling.top_p) & (probs_C >= sampling.min_p * probs_C[0])
    return keep_C


def keep_top_a(probs_C: Floats, sampling: Sampling) -> Mask:
    keep_C: Mask = probs_C >= sampling.top_a * probs_C[0] ** 2
    return keep_C


def keep_tail_free(probs_C: Floats, sampling: Sampling) -> Mask:
    """The tokens before the tail, where the curve of sorted probabilities flattens."""
    bends = np.abs(np.diff(probs_C, n=2))
    if not bends.sum():
        return np.ones(len(probs_C), dtype=bool)
    straight = np.cumsum(bends / bends.sum()) > sampling.tfs
    return ~np.concatenate([[False], straight, [True]])


def keep_typical(probs_C: Floats, sampling: Sampling) -> Mask:
    """The tokens whose surprise is nearest to the expected one, up to a mass of `typical`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise_C = -np.log(probs_C)
        expected = np.nansum(probs_C * surprise_C)
    order_C = np.argsort(np.abs(surprise_C - expected), kind="stable")
    before_C = np.cumsum(probs_C[order_C]) - probs_C[order_C]
    keep_C = np.zeros(len(probs_C), dtype=bool)
    keep_C[order_C[before_C < sampling.typical]] = True
    return keep_C


FILTERS: dict[int, Callable[[Floats, Sampling], Mask]] = {
    TOP_K: keep_top_k,
    TOP_A: keep_top_a,
    TOP_P: keep_top_p,
    TFS: keep_tail_free,
    TYPICAL: keep_typical,
}
