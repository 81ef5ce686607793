"""What labels' log-probabilities come to: accuracy, macro-F1, calibration, NLL, with intervals and differences.

Probabilities are over the closed set: the labels' own, divided by their sum. What is drawn again is the row, the same rows
for every line (paired bootstrap).

    accuracy             share of rows whose likeliest label is right
    macro-F1             mean over the labels of 2 TP / (2 TP + FP + FN); a label that neither occurs nor is said is left out
    calibration error    expected, over BINS bins of equal width of the likeliest label's probability (Guo et al. 2017, arXiv
                         1706.04599): the mean gap between how sure and how often right, weighted by the bins' rows
    NLL                  -log p(right label), nats a row

Shape key: N rows, L labels, K members, R resamples, F features whose sums over rows the measures are made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.evaluation.confidence import MIN_UNITS, Floats, interval, times_drawn
from sordino.evaluation.report import Estimate
from sordino.forward.combining import combine
from sordino.prompts.mixture import Rule, uniform

BINS = 10
Measure = Literal["accuracy", "macro_f1", "calibration_error", "nll"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
Ints = NDArray[np.int64]
# How an ensemble may decide, by the rule of `combining` and its name.
ENSEMBLES: tuple[tuple[Rule, str], ...] = (
    ("vote", "vote"),
    ("probabilities", "mean of probabilities"),
    ("logits", "mean of logits"),
)


@dataclass(frozen=True)
class Answers:
    """What one line says: logp_NL over the closed set (rows sum to one). tokens: what is in front of a text.

    raw_N: log p(right label) among all texts, where a model said it. members: for a mean, the lines it is the mean of.
    """

    kind: str
    label: str
    tokens: int
    logp_NL: Floats
    raw_N: Floats | None = None
    members: tuple[int, ...] = ()


@dataclass(frozen=True)
class TaskLine:
    """One line of the report. nll_per_label, nll_per_token: of the right label among all texts, without the closed set; None where
    no single condition said it. confusion[a][b]: rows of label a that were given label b. differences: by soft prompt or mixture,
    its accuracy less this line's, so above 0 where it is better.
    """

    kind: str
    label: str
    tokens: int
    accuracy: Estimate
    macro_f1: Estimate
    calibration_error: Estimate
    nll: Estimate
    nll_per_label: float | None
    nll_per_token: float | None
    confusion: tuple[tuple[int, ...], ...]
    differences: Mapping[str, Estimate]


def closed(logp_NL: Floats) -> Floats:
    """Log-probabilities over the set, from the labels' own among all texts."""
    largest_N1 = logp_NL.max(axis=-1, keepdims=True)
    total_N1 = np.log(np.exp(logp_NL - largest_N1).sum(axis=-1, keepdims=True)) + largest_N1
    found: Floats = logp_NL - total_N1
    return found


def majority(right_N: Ints, labels: int, rows: int) -> Floats:
    """Log-probabilities [rows, L] of somebody who knows how often each label occurs in `right_N`, and nothing of the row.

    One is added to every count, so that a label that was not met is not impossible.
    """
    counts_L = np.bincount(right_N, minlength=labels) + 1.0
    found: Floats = np.tile(np.log(counts_L / counts_L.sum()), (rows, 1))
    return found


def ensembled(members: Sequence[Floats], rule: Rule) -> Floats:
    """Log-probabilities [N, L] of an ensemble of equal weights, from its members' [N, L]."""
    logp_NKL = torch.from_numpy(np.stack(members, axis=1))
    log_weights_NK = torch.from_numpy(np.log(uniform(len(members)))).expand(len(logp_NKL), -1)
    found: Floats = combine(logp_NKL, log_weights_NK, rule).numpy()
    return found


def summarise(
    lines: Sequence[Answers], right_N: Ints, tokens_N: Ints, *, resamples: int, seed: int
) -> tuple[TaskLine, ...]:
    """Every line's measures, with intervals where there are MIN_UNITS rows. tokens_N: of each row's right label."""
    values = [{name: np.array([value]) for name, value in _own(line, right_N).items()} for line in lines]
    drawn = _drawn(lines, right_N, resamples, seed)
    for found in (values, drawn):
        for at, line in enumerate(lines):
            if line.members:
                found[at] = {
                    name: np.mean([found[member][name] for member in line.members], axis=0) for name in MEASURES
                }
    own = {line.label: at for at, line in enumerate(lines) if line.kind in ("soft prompt", "mixture")}

    def estimate(at: int, name: Measure, *, of: int | None = None) -> Estimate:
        value_1 = values[at][name] if of is None else values[of][name] - values[at][name]
        if len(right_N) < MIN_UNITS:
            return Estimate(float(value_1[0]), None)
        value_R = drawn[at][name] if of is None else drawn[of][name] - drawn[at][name]
        return Estimate(float(value_1[0]), interval(value_R, len(right_N)))

    return tuple(
        TaskLine(
            line.kind,
            line.label,
            line.tokens,
            estimate(at, "accuracy"),
            estimate(at, "macro_f1"),
            estimate(at, "calibration_error"),
            estimate(at, "nll"),
            None if line.raw_N is None else float(-line.raw_N.mean()),
            None if line.raw_N is None else float(-line.raw_N.sum() / tokens_N.sum()),
            confusion(line.logp_NL, right_N) if not line.members else (),
            {other: estimate(at, "accuracy", of=place) for other, place in own.items() if place != at},
        )
        for at, line in enumerate(lines)
    )


def confusion(logp_NL: Floats, right_N: Ints) -> tuple[tuple[int, ...], ...]:
    """[right][said], numbers of rows."""
    labels = logp_NL.shape[1]
    table = np.zeros((labels, labels), dtype=int)
    np.add.at(table, (right_N, logp_NL.argmax(axis=1)), 1)
    return tuple(tuple(int(count) for count in row) for row in table)


def _features(line: Answers, right_N: Ints) -> Floats:
    """[N, F]: NLL, right or not, gaps by bin (BINS), then by label true positives, said, and right (3 L)."""
    rows, labels = line.logp_NL.shape
    at_N = np.arange(rows)
    said_N, sure_N = line.logp_NL.argmax(axis=1), np.exp(line.logp_NL.max(axis=1))
    hit_N = (said_N == right_N).astype(float)
    gaps_NB = np.zeros((rows, BINS))
    gaps_NB[at_N, np.minimum((sure_N * BINS).astype(int), BINS - 1)] = hit_N - sure_N
    one_NLL = np.zeros((3, rows, labels))
    one_NLL[0, at_N, said_N] = hit_N
    one_NLL[1, at_N, said_N] = 1
    one_NLL[2, at_N, right_N] = 1
    return np.column_stack([-line.logp_NL[at_N, right_N], hit_N, gaps_NB, *one_NLL])


def _measures(sums_RF: Floats, rows: int, labels: int) -> dict[Measure, Floats]:
    """Every measure [R] from sums over `rows` rows."""
    true_RL, said_RL, right_RL = np.split(sums_RF[:, 2 + BINS :], [labels, 2 * labels], axis=1)
    met_RL = said_RL + right_RL > 0
    f1_RL = np.divide(2 * true_RL, said_RL + right_RL, out=np.zeros_like(true_RL), where=met_RL)
    return {
        "accuracy": sums_RF[:, 1] / rows,
        "macro_f1": f1_RL.sum(axis=1) / np.maximum(met_RL.sum(axis=1), 1),
        "calibration_error": np.abs(sums_RF[:, 2 : 2 + BINS]).sum(axis=1) / rows,
        "nll": sums_RF[:, 0] / rows,
    }


def _own(line: Answers, right_N: Ints) -> dict[Measure, float]:
    measured = _measures(_features(line, right_N).sum(axis=0)[None], len(right_N), line.logp_NL.shape[1])
    return {name: float(value_R[0]) for name, value_R in measured.items()}


def _drawn(lines: Sequence[Answers], right_N: Ints, resamples: int, seed: int) -> list[dict[Measure, Floats]]:
    """Every line's measures [R] over the same draws of rows."""
    rows, labels = lines[0].logp_NL.shape
    features = [_features(line, right_N) for line in lines]
    parts: list[list[dict[Measure, Floats]]] = [[] for _ in lines]
    for times_rN in times_drawn(rows, resamples=resamples, seed=seed):
        for part, features_NF in zip(parts, features, strict=True):
            part.append(_measures(times_rN @ features_NF, rows, labels))
    return [{name: np.concatenate([of[name] for of in part]) for name in MEASURES} for part in parts]
