"""Drawing tokens, and which of their text may be shown already. Pure functions, no model.

Shape key: V vocabulary, C candidates (words that are still possible, likeliest first; of equals the smaller id first).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sordino.engine.config import REPETITION, TEMPERATURE, TFS, TOP_A, TOP_K, TOP_P, TYPICAL
from sordino.engine.config import Sampling as Sampling
from sordino.engine.seen_tokens import Ids, SeenTokens
from sordino.errors import ModelError

_FIRST_LOOK = 512
Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Drawn:
    """A token, its log-probability in the model's own distribution, and the likeliest words with theirs."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def sample(logits_V: Tensor | Logits, seen: SeenTokens, sampling: Sampling, random: torch.Generator) -> Drawn:
    """Draw one token from float32 logits [V] behind the tokens of `seen`.

    The generator moves once per drawn token, and not at all where sampling is greedy. Raises ModelError where a logit is not a
    number, or infinite; words that cannot come are at minus infinity.
    """
    given_V: Logits = logits_V if isinstance(logits_V, np.ndarray) else logits_V.detach().cpu().numpy()
    # One pass for two questions: where a logit is not a number, the first such one is found.
    likeliest = int(given_V.argmax())
    if not given_V[likeliest] < math.inf:
        raise non_finite_logits()
    if _is_plain(sampling):
        return Drawn(_biased_likeliest(given_V, likeliest, sampling.logit_bias) if sampling.logit_bias else likeliest)
    raw_V: Floats = given_V.astype(np.float64)
    token = _draw(raw_V, seen, sampling, random)
    if sampling.logprobs is None:
        return Drawn(token)
    peak = raw_V.max()
    total = float(peak + np.log(np.exp(raw_V - peak).sum()))
    top = _likeliest(raw_V, sampling.logprobs)
    return Drawn(token, float(raw_V[token]) - total, tuple((int(i), float(raw_V[i]) - total) for i in top))


def non_finite_logits() -> ModelError:
    return ModelError("the model's answer is not a number", do="take another soft prompt, or a --dtype of larger range")


def _is_plain(sampling: Sampling) -> bool:
    """Whether the likeliest word is what is drawn, biases aside, and nothing else is asked for."""
    changed = sampling.presence_penalty or sampling.frequency_penalty
    return not (sampling.temperature or changed or sampling.repetition_penalty != 1 or sampling.logprobs is not None)


def _biased_likeliest(logits_V: Logits, likeliest: int, biases: Sequence[tuple[int, float]]) -> int:
    """The likeliest word with biases, of equals the first. likeliest: without them.

    As in float64, which the whole vocabulary is not brought to for a few words.
    """
    biased: dict[int, float] = {}
    for word, bias in biases:
        biased[word] = biased.get(word, float(logits_V[word])) + bias
    best = max(biased.values())
    word = min(word for word, value in biased.items() if value == best)
    if likeliest in biased:
        words = list(biased)
        were = logits_V[words]
        logits_V[words] = -np.inf
        likeliest = int(logits_V.argmax())
        logits_V[words] = were
    rest = float(logits_V[likeliest]) if likeliest not in biased else float("-inf")
    return min(word, likeliest) if best == rest else word if best > rest else likeliest


def _draw(raw_V: Floats, seen: SeenTokens, sampling: Sampling, random: torch.Generator) -> int:
    logits_V = _biased(raw_V, seen, sampling)
    if sampling.temperature == 0:
        return int(np.argmax(_penalised(logits_V, _penalties(seen, sampling))))
    ids_C, probs_C = distribution(logits_V, seen, sampling)
    # A uniform number against the cumulated probabilities: one number a token, whatever was filtered.
    sums_C = np.cumsum(probs_C)
    threshold = float(torch.rand((), generator=random, dtype=torch.float64)) * sums_C[-1]
    return int(ids_C[min(int(np.searchsorted(sums_C, threshold)), len(ids_C) - 1)])


def distribution(logits_V: Floats, seen: SeenTokens, sampling: Sampling) -> tuple[Ids, Floats]:
    """What a token is drawn from, temperature above 0: the words that are left, likeliest first, and their probabilities."""
    penalties = _penalties(seen, sampling)
    steps = [step for step in sampling.order if _is_on(step, sampling)]
    # What comes before the first sorting is done on the whole vocabulary at once.
    while steps and steps[0] in (REPETITION, TEMPERATURE):
        step = steps.pop(0)
        logits_V = _penalised(logits_V, penalties) if step == REPETITION else logits_V / sampling.temperature
    ids_C, logits_C, steps = _candidates(logits_V, steps, sampling)
    for step in steps:
        if step == TEMPERATURE:
            logits_C = logits_C / sampling.temperature
        elif step == REPETITION:
            logits_C = _penalised(logits_C, _among(penalties, ids_C))
            order_C = np.lexsort((ids_C, -logits_C))
            ids_C, logits_C = ids_C[order_C], logits_C[order_C]
        else:
            keep_C = _FILTERS[step](_softmax(logits_C), sampling)
            # Something must stay, and that is the likeliest.
            keep_C[0] |= not keep_C.any()
            ids_C, logits_C = ids_C[keep_C], logits_C[keep_C]
    return ids_C, _softmax(logits_C)


def _biased(raw_V: Floats, seen: SeenTokens, sampling: Sampling) -> Floats:
    if not (sampling.logit_bias or sampling.presence_penalty or sampling.frequency_penalty):
        return raw_V
    logits_V = raw_V.copy()
    for word, bias in sampling.logit_bias:
        logits_V[word] += bias
    for word, count in seen.new.items():
        logits_V[word] -= sampling.presence_penalty + count * sampling.frequency_penalty
    return logits_V


def _is_on(step: int, sampling: Sampling) -> bool:
    return {
        TOP_K: sampling.top_k > 0,
        TOP_A: sampling.top_a > 0,
        TOP_P: sampling.top_p < 1 or sampling.min_p > 0,
        TFS: sampling.tfs < 1,
        TYPICAL: sampling.typical < 1,
        TEMPERATURE: sampling.temperature != 1,
        REPETITION: sampling.repetition_penalty != 1,
    }[step]


def _candidates(logits_V: Floats, steps: list[int], sampling: Sampling) -> tuple[Ids, Floats, list[int]]:
    """Candidates, their logits, and the steps left. Where the first step is top_k or top_p few words need to be sorted."""
    if steps and steps[0] == TOP_K:
        ids_C = _likeliest(logits_V, sampling.top_k)
        return ids_C, logits_V[ids_C], steps[1:]
    if steps and steps[0] == TOP_P and sampling.top_p < 1:
        weight_V = np.exp(logits_V - logits_V.max())
        total, look = weight_V.sum(), _FIRST_LOOK
        while True:
            ids_C = _likeliest(logits_V, look)
            probs_C = weight_V[ids_C] / total
            if look >= len(logits_V) or probs_C.sum() >= sampling.top_p:
                break
            look *= 8
        keep_C = _keep_top_p(probs_C, sampling)
        keep_C[0] = True
        return ids_C[keep_C], logits_V[ids_C[keep_C]], steps[1:]
    ids_C = _likeliest(logits_V, len(logits_V))
    return ids_C, logits_V[ids_C], steps


def _likeliest(logits_V: Floats, count: int) -> Ids:
    """The `count` largest, largest first; of equals the smaller id first."""
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


def _keep_top_k(probs_C: Floats, sampling: Sampling) -> Mask:
    return np.arange(len(probs_C)) < sampling.top_k


def _keep_top_p(probs_C: Floats, sampling: Sampling) -> Mask:
    before_C = np.cumsum(probs_C) - probs_C
    keep_C: Mask = (before_C < sampling.top_p) & (probs_C >= sampling.min_p * probs_C[0])
    return keep_C


def _keep_top_a(probs_C: Floats, sampling: Sampling) -> Mask:
    keep_C: Mask = probs_C >= sampling.top_a * probs_C[0] ** 2
    return keep_C


def _keep_tail_free(probs_C: Floats, sampling: Sampling) -> Mask:
    """What lies before the tail, where the curve of sorted probabilities stops bending."""
    bends = np.abs(np.diff(probs_C, n=2))
    if not bends.sum():
        return np.ones(len(probs_C), dtype=bool)
    straight = np.cumsum(bends / bends.sum()) > sampling.tfs
    return ~np.concatenate([[False], straight, [True]])


def _keep_typical(probs_C: Floats, sampling: Sampling) -> Mask:
    """Words whose surprise is nearest to the expected one, up to a mass of `typical`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise_C = -np.log(probs_C)
        expected = np.nansum(probs_C * surprise_C)
    order_C = np.argsort(np.abs(surprise_C - expected), kind="stable")
    before_C = np.cumsum(probs_C[order_C]) - probs_C[order_C]
    keep_C = np.zeros(len(probs_C), dtype=bool)
    keep_C[order_C[before_C < sampling.typical]] = True
    return keep_C


_FILTERS: dict[int, Callable[[Floats, Sampling], Mask]] = {
    TOP_K: _keep_top_k,
    TOP_A: _keep_top_a,
    TOP_P: _keep_top_p,
    TFS: _keep_tail_free,
    TYPICAL: _keep_typical,
}


@dataclass(frozen=True)
class _Penalties:
    """The places of some words, and what divides the logit of each."""

    places: Ids
    divisors: Floats


def _penalties(seen: SeenTokens, sampling: Sampling) -> _Penalties | None:
    """The divisor of every word that was seen; with a slope it is the larger the later the word was last drawn.

    KoboldAI's curve: places -1 (the oldest of the range) to 1 (the newest) are bent by the slope and mapped to 1 .. penalty.
    """
    if sampling.repetition_penalty == 1:
        return None
    words, last = seen.last_places()
    slope, extent = sampling.repetition_slope, sampling.repetition_penalty - 1
    places = max(sampling.repetition_range, len(seen.ids) - seen.start)
    if not slope or places < 2:
        return _Penalties(words, np.full(len(words), sampling.repetition_penalty))
    place = (places - len(seen.ids) + last) * (2 / (places - 1)) - 1
    bent = slope * place / (1 + np.abs(place) * (slope - 1))
    return _Penalties(words, 1 + extent * (bent + 1) / 2)


def _penalised(logits: Floats, penalties: _Penalties | None) -> Floats:
    if penalties is None:
        return logits
    places, divisors = penalties.places, penalties.divisors
    logits, values = logits.copy(), logits[places]
    logits[places] = np.where(values > 0, values / divisors, values * divisors)
    return logits


def _among(penalties: _Penalties | None, ids_C: Ids) -> _Penalties | None:
    """The penalties by place among the candidates."""
    if penalties is None:
        return None
    _, places, found = np.intersect1d(ids_C, penalties.places, assume_unique=True, return_indices=True)
    return _Penalties(places, penalties.divisors[found])
