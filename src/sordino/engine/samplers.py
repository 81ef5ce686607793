"""DRY, XTC, dynamic temperature and smoothing, as published; forbidden tokens; and the steps of sampling that leave tokens out.
Pure functions on float64 arrays.

Shape key: V vocabulary, C candidates (likeliest first), M earlier places where the text's last token stands too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sordino.engine.config import TFS, TOP_A, TOP_K, TOP_P, TYPICAL, Sampling
from sordino.engine.seen_tokens import Ids, SeenTokens

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# A longer repetition counts as one of this length: the penalty is overwhelming by then.
_LONGEST_MATCH = 50
_COLDEST = 1e-3


@dataclass(frozen=True)
class TokenInfo:
    """What sampling needs to know of a vocabulary. ends: the ids that end a text. text: of a token."""

    ends: frozenset[int] = frozenset()
    text: Callable[[int], str] = lambda token: ""


NO_VOCABULARY = TokenInfo()


def forbidden(seen: SeenTokens, sampling: Sampling, vocabulary: TokenInfo) -> list[int]:
    """The tokens that cannot come next: the last of a banned sequence after its others, and ends of the text."""
    found = {one[-1] for one in sampling.banned if seen.ids[len(seen.ids) - len(one) + 1 :] == list(one[:-1])}
    if sampling.end == "forbid" or seen.new.total() < sampling.min_tokens:
        found |= vocabulary.ends
    return list(found)


def dry_penalties(ids: Sequence[int], sampling: Sampling, vocabulary: TokenInfo) -> tuple[Ids, Floats]:
    """DRY (Don't Repeat Yourself, p-e-w, text-generation-webui #5677): the tokens that would continue a repetition, and what is
    subtracted from the logit of each: multiplier * base ** (length of the repetition - allowed length).

    A repetition does not reach across a token whose text contains one of the sequence breakers; no such token is penalised.
    """
    row = np.asarray(ids[-sampling.dry_range :], dtype=np.int64)
    if len(row) < 2 or _breaks(int(row[-1]), sampling, vocabulary):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    ends_M = np.flatnonzero(row[:-1] == row[-1])
    lengths_M = np.ones(len(ends_M), dtype=np.int64)
    going_M = np.arange(len(ends_M))
    for length in range(1, min(_LONGEST_MATCH, len(row) - 1)):
        going_M = going_M[ends_M[going_M] >= length]
        going_M = going_M[row[ends_M[going_M] - length] == row[-1 - length]]
        if not len(going_M) or _breaks(int(row[-1 - length]), sampling, vocabulary):
            break
        lengths_M[going_M] = length + 1
    longest: dict[int, int] = {}
    for token, length in zip(row[ends_M + 1].tolist(), lengths_M.tolist(), strict=True):
        if length >= sampling.dry_allowed_length and not _breaks(token, sampling, vocabulary):
            longest[token] = max(length, longest.get(token, 0))
    beyond = np.array(list(longest.values()), dtype=np.float64) - sampling.dry_allowed_length
    return np.array(list(longest), dtype=np.int64), sampling.dry_multiplier * sampling.dry_base**beyond


def _breaks(token: int, sampling: Sampling, vocabulary: TokenInfo) -> bool:
    text = vocabulary.text(token)
    return any(breaker in text for breaker in sampling.dry_breakers)


def without_top_choices(ids_C: Ids, probs_C: Floats, sampling: Sampling, vocabulary: TokenInfo) -> Mask:
    """XTC (Exclude Top Choices, p-e-w, text-generation-webui #6335), where it acts: the tokens that stay.

    Of the tokens of at least the threshold's probability only the least likely stays. All stay where an end of the text or of a
    line is among the others.
    """
    keep_C = np.ones(len(ids_C), dtype=bool)
    keep_C[:-1] = probs_C[1:] < sampling.xtc_threshold
    left_out = ids_C[~keep_C].tolist()
    if any(token in vocabulary.ends or "\n" in vocabulary.text(token) for token in left_out):
        keep_C[:] = True
    return keep_C


def heated(logits: Floats, sampling: Sampling) -> Floats:
    """Logits after the temperature, which may be dynamic, and smoothing."""
    logits = logits / (_dynamic_temperature(logits, sampling) if sampling.dynatemp_range else sampling.temperature)
    return _smoothed(logits, sampling) if sampling.smoothing_factor else logits


def _dynamic_temperature(logits: Floats, sampling: Sampling) -> float:
    """Dynamic temperature (kalomaze; text-generation-webui #4841): between temperature - range and temperature + range, by the
    entropy as a share of the largest possible, to the power of the exponent.
    """
    low = max(0.0, sampling.temperature - sampling.dynatemp_range)
    high = sampling.temperature + sampling.dynatemp_range
    weights = np.exp(logits - logits.max())
    probs = weights / weights.sum()
    possible = probs[probs > 0]
    count = int(np.isfinite(logits).sum())
    share = float(-(possible * np.log(possible)).sum()) / math.log(count) if count > 1 else 0.0
    moved = (high - low) * math.pow(min(1.0, max(0.0, share)), sampling.dynatemp_exponent)
    return max(_COLDEST, low + moved)


def _smoothed(logits: Floats, sampling: Sampling) -> Floats:
    """Smoothing (kalomaze's quadratic sampling, text-generation-webui #5403; the curve's cubic term #5551): a parabola around the
    likeliest token in place of the logits.
    """
    factor, curve, peak = sampling.smoothing_factor, sampling.smoothing_curve, logits.max()
    below = np.where(np.isfinite(logits), logits - peak, 0.0)
    bent = peak - (3 - curve) / 2 * factor * below**2 + (curve - 1) / 2 * factor * below**3
    return np.where(np.isfinite(logits), bent, logits)


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
