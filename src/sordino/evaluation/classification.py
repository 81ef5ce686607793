"""What labels' log-probabilities come to: accuracy, macro-F1, calibration, NLL, with intervals and differences.

Probabilities are over the closed set: the labels' own, divided by their sum. Intervals come from resampled rows, the same rows
for every line (paired bootstrap).

    accuracy             share of rows whose likeliest label is right
    macro-F1             mean over the labels of 2 TP / (2 TP + FP + FN); a label that neither occurs nor is predicted is left out
    calibration error    expected, over BINS bins of equal width of the likeliest label's probability (Guo et al. 2017, arXiv
                         1706.04599): the mean gap between confidence and accuracy, weighted by the bins' rows
    NLL                  -log p(right label), nats a row

Shape key: N rows, L labels, K members or components, E edges of the label tree, R resamples, F features of a row whose sums give
the measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.evaluation.confidence import MIN_UNITS, Estimate, Floats, LineEstimates, times_drawn
from sordino.evaluation.label_scores import LabelTree
from sordino.forward.combining import combine
from sordino.prompts.mixture import Mixture, Rule, uniform

BINS = 10
Measure = Literal["accuracy", "macro_f1", "calibration_error", "nll"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
Ints = NDArray[np.int64]
# The rules of `combining` that an ensemble may follow, and their names.
ENSEMBLES: tuple[tuple[Rule, str], ...] = (
    ("vote", "vote"),
    ("probabilities", "mean of probabilities"),
    ("logits", "mean of logits"),
)


@dataclass(frozen=True)
class Answers:
    """The predictions of one line: logp_NL over the closed set (rows sum to one). tokens: of the condition.

    raw_N: log p(right label) among all texts, where a model gives it. members: of a mean, the lines that it averages.
    """

    kind: str
    label: str
    tokens: int
    logp_NL: Floats
    raw_N: Floats | None = None
    members: tuple[int, ...] = ()


@dataclass(frozen=True)
class TaskLine:
    """One line of the report. nll_per_label, nll_per_token: of the right label among all texts; None where no single condition
    gives it. confusion[a][b]: rows of label a that were given label b. differences: by soft prompt or mixture, its accuracy less
    this line's, so above 0 where it is better.
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
    """Log-probabilities [rows, L] from how often each label occurs in `right_N`, the same for every row.

    One is added to every count, so that a label that does not occur is not impossible.
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


def mixture_logps(mixture: Mixture, logp_NKE: Floats, weights_NK: Floats, tree: LabelTree) -> tuple[Floats, bool]:
    """Log-probabilities [N, L] of a mixture, and whether they are among all texts; else they are over the closed set.

    sequence: sum_k w_k p_k(label) of the whole label. probabilities: every token of the label by sum_k w_k p_k(token). logits,
    vote: over the labels instead of the vocabulary.
    """
    with np.errstate(divide="ignore"):
        log_weights_NK = torch.from_numpy(np.log(weights_NK))
    if mixture.rule == "probabilities":
        token_NE = combine(torch.from_numpy(logp_NKE), log_weights_NK, "probabilities").numpy()
        return tree.sums(token_NE), True
    logp_NKL = np.stack([tree.sums(logp_NKE[:, k]) for k in range(logp_NKE.shape[1])], axis=1)
    among_all = mixture.rule == "sequence"
    members = torch.from_numpy(logp_NKL if among_all else closed(logp_NKL))
    return combine(members, log_weights_NK, mixture.rule).numpy(), among_all


def summarise(
    lines: Sequence[Answers], right_N: Ints, tokens_N: Ints, *, resamples: int, seed: int
) -> tuple[TaskLine, ...]:
    """Every line's measures, with intervals where there are MIN_UNITS rows. tokens_N: of each row's right label."""
    rows, labels = lines[0].logp_NL.shape
    features = [_features(line, right_N) for line in lines]

    def measured(times_rN: Floats) -> dict[Measure, Floats]:
        """Every measure [r, L] over rows that count as often as `times_rN` says."""
        of_lines = [_measures(times_rN @ features_NF, rows, labels) for features_NF in features]
        found = {name: np.stack([of[name] for of in of_lines], axis=1) for name in MEASURES}
        for at, line in enumerate(lines):
            for value_rL in found.values() if line.members else ():
                value_rL[:, at] = value_rL[:, list(line.members)].mean(axis=1)
        return found

    values = measured(np.ones((1, rows)))
    draws = []
    if rows >= MIN_UNITS:
        draws = [measured(times_rN) for times_rN in times_drawn(rows, resamples=resamples, seed=seed)]
    estimates = {
        name: LineEstimates(values[name][0], np.concatenate([of[name] for of in draws]) if draws else None, rows)
        for name in MEASURES
    }
    own = {line.label: at for at, line in enumerate(lines) if line.kind in ("soft prompt", "mixture")}
    return tuple(
        TaskLine(
            line.kind,
            line.label,
            line.tokens,
            estimates["accuracy"].of(at),
            estimates["macro_f1"].of(at),
            estimates["calibration_error"].of(at),
            estimates["nll"].of(at),
            None if line.raw_N is None else float(-line.raw_N.mean()),
            None if line.raw_N is None else float(-line.raw_N.sum() / tokens_N.sum()),
            confusion(line.logp_NL, right_N) if not line.members else (),
            {other: estimates["accuracy"].of(place, less=at) for other, place in own.items() if place != at},
        )
        for at, line in enumerate(lines)
    )


def confusion(logp_NL: Floats, right_N: Ints) -> tuple[tuple[int, ...], ...]:
    """[right][predicted], numbers of rows."""
    labels = logp_NL.shape[1]
    table = np.zeros((labels, labels), dtype=int)
    np.add.at(table, (right_N, logp_NL.argmax(axis=1)), 1)
    return tuple(tuple(int(count) for count in row) for row in table)


def _features(line: Answers, right_N: Ints) -> Floats:
    """[N, F]: NLL, right or not, gaps by bin (BINS), then by label true positives, predicted, and right (3 L)."""
    rows, labels = line.logp_NL.shape
    at_N = np.arange(rows)
    predicted_N, sure_N = line.logp_NL.argmax(axis=1), np.exp(line.logp_NL.max(axis=1))
    hit_N = (predicted_N == right_N).astype(float)
    gaps_NB = np.zeros((rows, BINS))
    gaps_NB[at_N, np.minimum((sure_N * BINS).astype(int), BINS - 1)] = hit_N - sure_N
    one_NLL = np.zeros((3, rows, labels))
    one_NLL[0, at_N, predicted_N] = hit_N
    one_NLL[1, at_N, predicted_N] = 1
    one_NLL[2, at_N, right_N] = 1
    return np.column_stack([-line.logp_NL[at_N, right_N], hit_N, gaps_NB, *one_NLL])


def _measures(sums_RF: Floats, rows: int, labels: int) -> dict[Measure, Floats]:
    """Every measure [R] from sums of features over `rows` rows."""
    true_RL, predicted_RL, right_RL = np.split(sums_RF[:, 2 + BINS :], [labels, 2 * labels], axis=1)
    met_RL = predicted_RL + right_RL > 0
    f1_RL = np.divide(2 * true_RL, predicted_RL + right_RL, out=np.zeros_like(true_RL), where=met_RL)
    return {
        "accuracy": sums_RF[:, 1] / rows,
        "macro_f1": f1_RL.sum(axis=1) / np.maximum(met_RL.sum(axis=1), 1),
        "calibration_error": np.abs(sums_RF[:, 2 : 2 + BINS]).sum(axis=1) / rows,
        "nll": sums_RF[:, 0] / rows,
    }
