"""Drawing tokens. Pure functions, no model.

Shape key: V vocabulary, C candidates (tokens that are still possible, likeliest first; the smaller id of equals first).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sordino.engine.config import REPETITION, TEMPERATURE, TFS, TOP_A, TOP_K, TOP_P, TYPICAL
from sordino.engine.config import Sampling as Sampling
from sordino.engine.samplers import (
    FILTERS,
    NO_VOCABULARY,
    Floats,
    Mask,
    TokenInfo,
    dry_penalties,
    forbidden,
    heated,
    keep_top_p,
    without_top_choices,
)
from sordino.engine.seen_tokens import Ids, SeenTokens
from sordino.errors import ModelError

_FIRST_CANDIDATES = 512
# Added to the logit of a token that cannot come. Finite: one is left where all are forbidden.
_FORBIDDEN = -1e9
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Drawn:
    """A token, its log-probability in the model's own distribution, and the likeliest tokens with theirs."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def sample(
    logits_V: Tensor | Logits,
    seen: SeenTokens,
    sampling: Sampling,
    random: torch.Generator,
    vocabulary: TokenInfo = NO_VOCABULARY,
    allowed_V: Mask | None = None,
) -> Drawn:
    """Draw one token from float32 logits [V] after the tokens of `seen`. allowed_V: the tokens that may come.

    The generator advances once per drawn token, twice with XTC, and not at all for greedy sampling. Raises ModelError where a logit
    is NaN or plus infinity; minus infinity marks tokens that cannot come.
    """
    raw_V: Logits = logits_V if isinstance(logits_V, np.ndarray) else logits_V.detach().cpu().numpy()
    # One pass for two purposes: argmax finds the first NaN, if there is one.
    likeliest = int(raw_V.argmax())
    if not raw_V[likeliest] < math.inf:
        raise non_finite_logits()
    possible_V = raw_V
    if allowed_V is not None:
        possible_V = np.where(allowed_V, raw_V, np.float32(-np.inf))
        likeliest = int(possible_V.argmax())
    if _is_plain(sampling):
        biased = bool(sampling.logit_bias)
        return Drawn(_biased_likeliest(possible_V, likeliest, sampling.logit_bias) if biased else likeliest)
    token = _draw(possible_V.astype(np.float64), seen, sampling, random, vocabulary)
    return Drawn(token) if sampling.logprobs is None else reported(raw_V.astype(np.float64), token, sampling.logprobs)


def reported(exact_V: Floats, token: int, count: int) -> Drawn:
    """A token with its log probability and those of the `count` likeliest."""
    peak = exact_V.max()
    total = float(peak + np.log(np.exp(exact_V - peak).sum()))
    top = _likeliest(exact_V, count)
    return Drawn(token, float(exact_V[token]) - total, tuple((int(i), float(exact_V[i]) - total) for i in top))


def non_finite_logits() -> ModelError:
    return ModelError(
        "the model's logits are not finite", do="choose another soft prompt, or a --dtype of larger range"
    )


def _is_plain(sampling: Sampling) -> bool:
    """Whether only the likeliest token is wanted, biases aside."""
    changed = _moves(sampling) or sampling.repetition_penalty != 1
    return not (sampling.temperature or changed or sampling.logprobs is not None)


def _moves(sampling: Sampling) -> bool:
    """Whether something is added to the logits of some tokens, biases aside."""
    penalties = sampling.presence_penalty or sampling.frequency_penalty or sampling.dry_multiplier
    return bool(penalties or sampling.banned or sampling.min_tokens or sampling.end == "forbid")


def _biased_likeliest(logits_V: Logits, likeliest: int, biases: Sequence[tuple[int, float]]) -> int:
    """The likeliest token with biases, the first of equals. likeliest: the one without biases.

    Only the biased tokens are computed in float64, not the whole vocabulary.
    """
    biased: dict[int, float] = {}
    for token, bias in biases:
        biased[token] = biased.get(token, float(logits_V[token])) + bias
    best = max(biased.values())
    token = min(token for token, value in biased.items() if value == best)
    if likeliest in biased:
        tokens = list(biased)
        before = logits_V[tokens]
        logits_V[tokens] = -np.inf
        likeliest = int(logits_V.argmax())
        logits_V[tokens] = before
    rest = float(logits_V[likeliest]) if likeliest not in biased else float("-inf")
    return min(token, likeliest) if best == rest else token if best > rest else likeliest


def _draw(raw_V: Floats, seen: SeenTokens, sampling: Sampling, random: torch.Generator, vocabulary: TokenInfo) -> int:
    logits_V = _biased(raw_V, seen, sampling, vocabulary)
    if sampling.temperature == 0:
        return int(np.argmax(_penalised(logits_V, _penalties(seen, sampling))))
    ids_C, probs_C = distribution(logits_V, seen, sampling)
    if sampling.xtc_probability and _uniform(random) < sampling.xtc_probability:
        keep_C = without_top_choices(ids_C, probs_C, sampling, vocabulary)
        ids_C, probs_C = ids_C[keep_C], probs_C[keep_C]
    # One number a token, whatever was filtered.
    sums_C = np.cumsum(probs_C)
    threshold = _uniform(random) * sums_C[-1]
    return int(ids_C[min(int(np.searchsorted(sums_C, threshold)), len(ids_C) - 1)])


def _uniform(random: torch.Generator) -> float:
    return float(torch.rand((), generator=random, dtype=torch.float64))


def distribution(logits_V: Floats, seen: SeenTokens, sampling: Sampling) -> tuple[Ids, Floats]:
    """The distribution of the next token, temperature above 0: the remaining tokens, likeliest first, and their probabilities."""
    penalties = _penalties(seen, sampling)
    steps = [step for step in sampling.order if is_on(step, sampling)]
    # Steps before the first one that sorts work on the whole vocabulary at once.
    while steps and steps[0] in (REPETITION, TEMPERATURE):
        step = steps.pop(0)
        logits_V = _penalised(logits_V, penalties) if step == REPETITION else heated(logits_V, sampling)
    ids_C, logits_C, steps = _candidates(logits_V, steps, sampling)
    if logits_C[-1] == -math.inf:
        # Words that cannot come are none of the tail.
        possible_C = logits_C > -math.inf
        ids_C, logits_C = ids_C[possible_C], logits_C[possible_C]
    for step in steps:
        if step in (TEMPERATURE, REPETITION):
            heat = step == TEMPERATURE
            logits_C = heated(logits_C, sampling) if heat else _penalised(logits_C, _among(penalties, ids_C))
            # A steep curve of smoothing changes the order, too.
            order_C = np.lexsort((ids_C, -logits_C))
            ids_C, logits_C = ids_C[order_C], logits_C[order_C]
        else:
            keep_C = FILTERS[step](_softmax(logits_C), sampling)
            # The likeliest token always stays.
            keep_C[0] |= not keep_C.any()
            ids_C, logits_C = ids_C[keep_C], logits_C[keep_C]
    return ids_C, _softmax(logits_C)


def _biased(raw_V: Floats, seen: SeenTokens, sampling: Sampling, vocabulary: TokenInfo) -> Floats:
    if not (sampling.logit_bias or _moves(sampling)):
        return raw_V
    logits_V = raw_V.copy()
    for token, bias in sampling.logit_bias:
        logits_V[token] += bias
    if sampling.presence_penalty or sampling.frequency_penalty:
        for token, count in seen.new.items():
            logits_V[token] -= sampling.presence_penalty + count * sampling.frequency_penalty
    if sampling.dry_multiplier:
        ids, penalties = dry_penalties(seen.ids, sampling, vocabulary)
        logits_V[ids] -= penalties
    logits_V[forbidden(seen, sampling, vocabulary)] += _FORBIDDEN
    return logits_V


def is_on(step: int, sampling: Sampling) -> bool:
    """Whether a step of `order` changes anything."""
    return {
        TOP_K: sampling.top_k > 0,
        TOP_A: sampling.top_a > 0,
        TOP_P: sampling.top_p < 1 or sampling.min_p > 0,
        TFS: sampling.tfs < 1,
        TYPICAL: sampling.typical < 1,
        TEMPERATURE: sampling.temperature != 1 or sampling.dynatemp_range > 0 or sampling.smoothing_factor > 0,
        REPETITION: sampling.repetition_penalty != 1,
    }[step]


def _candidates(logits_V: Floats, steps: list[int], sampling: Sampling) -> tuple[Ids, Floats, list[int]]:
    """Candidates, their logits, and the steps left. Where top_k or top_p comes first, only a few tokens are sorted."""
    if steps and steps[0] == TOP_K:
        ids_C = _likeliest(logits_V, sampling.top_k)
        return ids_C, logits_V[ids_C], steps[1:]
    if steps and steps[0] == TOP_P and sampling.top_p < 1:
        weight_V = np.exp(logits_V - logits_V.max())
        total, count = weight_V.sum(), _FIRST_CANDIDATES
        while True:
            ids_C = _likeliest(logits_V, count)
            probs_C = weight_V[ids_C] / total
            if count >= len(logits_V) or probs_C.sum() >= sampling.top_p:
                break
            count *= 8
        keep_C = keep_top_p(probs_C, sampling)
        keep_C[0] = True
        return ids_C[keep_C], logits_V[ids_C[keep_C]], steps[1:]
    ids_C = _likeliest(logits_V, len(logits_V))
    return ids_C, logits_V[ids_C], steps


def _likeliest(logits_V: Floats, count: int) -> Ids:
    """The ids of the `count` largest, largest first; the smaller id of equals first."""
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    if count >= len(logits_V):
        return np.argsort(-logits_V, kind="stable")
    least = np.partition(logits_V, len(logits_V) - count)[len(logits_V) - count]
    ids = np.flatnonzero(logits_V >= least)
    return ids[np.argsort(-logits_V[ids], kind="stable")][:count]


def _softmax(logits_C: Floats) -> Floats:
    weight_C = np.exp(logits_C - logits_C.max())
    probs_C: Floats = weight_C / weight_C.sum()
    return probs_C


@dataclass(frozen=True)
class _Penalties:
    """Indices of some tokens, and the divisor of each one's logit."""

    places: Ids
    divisors: Floats


def _penalties(seen: SeenTokens, sampling: Sampling) -> _Penalties | None:
    """The divisor of every token that was seen; with a slope, the later a token was last seen, the larger.

    KoboldAI's curve: places -1 (the oldest of the range) to 1 (the newest) are bent by the slope and mapped to 1 .. penalty.
    """
    if sampling.repetition_penalty == 1:
        return None
    tokens, last = seen.last_places()
    slope, extent = sampling.repetition_slope, sampling.repetition_penalty - 1
    places = max(sampling.repetition_range, len(seen.ids) - seen.start)
    if not slope or places < 2:
        return _Penalties(tokens, np.full(len(tokens), sampling.repetition_penalty))
    place = (places - len(seen.ids) + last) * (2 / (places - 1)) - 1
    bent = slope * place / (1 + np.abs(place) * (slope - 1))
    return _Penalties(tokens, 1 + extent * (bent + 1) / 2)


def _penalised(logits: Floats, penalties: _Penalties | None) -> Floats:
    if penalties is None:
        return logits
    places, divisors = penalties.places, penalties.divisors
    logits, values = logits.copy(), logits[places]
    logits[places] = np.where(values > 0, values / divisors, values * divisors)
    return logits


def _among(penalties: _Penalties | None, ids_C: Ids) -> _Penalties | None:
    """The penalties by index among the candidates."""
    if penalties is None:
        return None
    _, places, found = np.intersect1d(ids_C, penalties.places, assume_unique=True, return_indices=True)
    return _Penalties(places, penalties.divisors[found])
