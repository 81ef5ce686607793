"""What every component, the ensembles and the mixtures reach on the same held-out tokens, with intervals.

Shape key: N examples, T labelled tokens, K components, L lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from sordino.evaluation.confidence import Estimate, Floats, mean_estimates, units_of
from sordino.evaluation.pictures import FAINT, Dot, draw_dots, new_figure, plain_axes
from sordino.forward.combining import nll_of_texts
from sordino.forward.token_losses import TokenLosses
from sordino.prompts.mixture import uniform
from sordino.training.mixture.em import effective_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["component", "best", "mean", "ensemble", "uniform", "mixture", "gate"]
# All but the components, in the words of the table.
TITLES: dict[str, str] = {
    "best": "the best component (chosen on the training texts)",
    "mean": "the components' mean loss",
    "ensemble": "ensemble: equal weights, token by token",
    "uniform": "mixture: equal weights",
    "mixture": "mixture: fitted weights",
    "gate": "mixture: weights by the text (gate)",
}


@dataclass(frozen=True)
class MixtureLine:
    """nll: nats a token. less_mixture: this line's loss less that of the mixture with fitted weights, so above 0 where the mixture
    is better. weight: of a component, in the mixture.
    """

    kind: Kind
    label: str
    nll: Estimate
    less_mixture: Estimate
    weight: float | None = None


@dataclass(frozen=True)
class MixtureReport:
    """tokens: labelled ones. unit, units: what the bootstrap draws, and how many there are. weights_K: fitted."""

    pieces: int
    tokens: int
    unit: str
    units: int
    lines: tuple[MixtureLine, ...]
    weights_K: Floats

    @property
    def effective(self) -> float:
        """How many components carry weight."""
        return effective_number(self.weights_K)

    def line(self, kind: Kind) -> MixtureLine:
        """The first line of this kind. Raises KeyError."""
        for line in self.lines:
            if line.kind == kind:
                return line
        raise KeyError(kind)

    @property
    def gate_won(self) -> bool | None:
        """Whether the gate is better than fixed weights by more than chance; None where there is none."""
        if not any(line.kind == "gate" for line in self.lines):
            return None
        less = self.line("gate").less_mixture
        return less.value < 0 and less.excludes_zero


@dataclass(frozen=True)
class Candidates:
    """What is compared, all of it chosen before anything was held out. best: index of the best component. weights_K: the fitted
    weights. gate_NK: a gate's weights for each held-out example, if there is one.
    """

    labels: Sequence[str]
    best: int
    weights_K: Floats
    gate_NK: Floats | None = None


def measure(
    scored: TokenLosses, pieces: Sequence[str], candidates: Candidates, *, resamples: int = 10_000, seed: int = 0
) -> MixtureReport:
    """scored: held-out losses of the components. pieces: the piece that each example is of."""
    labels, best, weights_K = candidates.labels, candidates.best, candidates.weights_K
    count = len(labels)
    equal_K, fitted_K = torch.from_numpy(uniform(count)).log(), torch.from_numpy(weights_K.copy()).log()
    nll_NK = scored.of_examples()
    ensemble_N = scored.summed(nll_of_texts(scored.nll_TK, equal_K)[:, None])[:, 0]
    columns: list[tuple[Kind, str, torch.Tensor]] = [("component", labels[k], nll_NK[:, k]) for k in range(count)]
    columns += [
        ("best", labels[best], nll_NK[:, best]),
        ("mean", "", nll_NK.mean(dim=1)),
        ("ensemble", "", ensemble_N),
        ("uniform", "", nll_of_texts(nll_NK, equal_K)),
        ("mixture", "", nll_of_texts(nll_NK, fitted_K)),
    ]
    if candidates.gate_NK is not None:
        columns.append(("gate", "", nll_of_texts(nll_NK, torch.from_numpy(candidates.gate_NK).log())))
    nll_NL = torch.stack([column for _, _, column in columns], dim=1).numpy()
    tokens_N = scored.tokens_N.double().numpy()
    units = units_of(list(pieces), tokens_N.astype(int).tolist())
    means = mean_estimates(nll_NL, tokens_N, units, resamples=resamples, seed=seed)
    own = next(at for at, (kind, _, _) in enumerate(columns) if kind == "mixture")
    lines = tuple(
        MixtureLine(kind, label, means.of(at), means.of(at, less=own), float(weights_K[at]) if at < count else None)
        for at, (kind, label, _) in enumerate(columns)
    )
    return MixtureReport(len(set(pieces)), int(tokens_N.sum()), units.kind, units.count, lines, np.array(weights_K))


def verdicts(report: MixtureReport) -> list[str]:
    """What the numbers say, in sentences."""
    names = [line.label for line in report.lines if line.kind == "component"]
    heavy = [f"{name} {weight:.2f}" for name, weight in zip(names, report.weights_K, strict=True) if weight >= 0.01]
    sentences = [f"Weights: {', '.join(heavy)}; as many as {report.effective:.1f} components of equal weight."]
    if len(names) > 1:
        sentences.append(_against(report.line("best"), f"the best component alone ({report.line('best').label})"))
        sentences.append(_against(report.line("ensemble"), "the ensemble of equal weights"))
    if report.gate_won is None:
        return sentences
    less = report.line("gate").less_mixture
    gap = f"{abs(less.value):.4f} nats a token{_spread(less)}"
    if report.gate_won:
        return [*sentences, f"The gate won: weights that depend on the text are better than fixed ones by {gap}."]
    side = "better" if less.value < 0 else "worse"
    return [*sentences, f"Fixed weights won: those that depend on the text are {side} by {gap}."]


def explanation(report: MixtureReport, row_tokens: int) -> list[str]:
    """What was measured and how to read it."""
    lines = [
        f"Measured on {report.tokens:,} tokens of {report.pieces:,} held-out texts, in examples of at most {row_tokens}; "
        "every line predicts the same tokens.",
        "Loss: nats a token; lower is better. Over mixture: this line's loss less the mixture's; above 0, the mixture is better.",
    ]
    if report.line("mixture").nll.interval is None:
        return [*lines, "There is too little held-out text for intervals."]
    return [*lines, f"In brackets: 95 % intervals, drawn by {report.unit} ({report.units:,} units)."]


def summary(report: MixtureReport) -> dict[str, Any]:
    """The numbers that a mixture's own file keeps: plain JSON, a few lines."""
    keys = {
        "best": "best_component",
        "mean": "mean_component",
        "ensemble": "uniform_ensemble",
        "uniform": "uniform_mixture",
        "mixture": "mixture",
        "gate": "gate",
    }
    summary: dict[str, Any] = {
        "tokens": report.tokens,
        "nll": {keys[line.kind]: round(line.nll.value, 4) for line in report.lines if line.kind in keys},
        "components": [round(line.nll.value, 4) for line in report.lines if line.kind == "component"],
        "less_mixture": {
            keys[line.kind]: [round(end, 4) for end in line.less_mixture.interval]
            for line in report.lines
            if line.kind in keys and line.kind != "mixture" and line.less_mixture.interval is not None
        },
        "effective_components": round(report.effective, 3),
    }
    if report.gate_won is not None:
        summary["gate_won"] = report.gate_won
    return summary


def to_json(report: MixtureReport) -> dict[str, Any]:
    """All of it as plain JSON."""
    return {
        "pieces": report.pieces,
        "tokens": report.tokens,
        "bootstrap": {"unit": report.unit, "units": report.units},
        "lines": [
            {
                "kind": line.kind,
                "label": line.label,
                "nll": line.nll.value,
                "interval": line.nll.interval,
                "less_mixture": {"nll": line.less_mixture.value, "interval": line.less_mixture.interval},
                "weight": line.weight,
            }
            for line in report.lines
        ],
        "weights": report.weights_K.tolist(),
        "effective_components": report.effective,
        "gate_won": report.gate_won,
        "verdicts": verdicts(report),
    }


def _against(line: MixtureLine, what: str) -> str:
    less = line.less_mixture
    if not less.excludes_zero:
        return f"The mixture and {what} differ by less ({less.value:+.3f}) than so little text can show."
    side = "better" if less.value > 0 else "worse" if less.value < 0 else "no better"
    return f"The mixture is {side} than {what} by {abs(less.value):.3f} nats a token{_spread(less)}."


def _spread(less: Estimate) -> str:
    if less.interval is None:
        return ""
    low, high = less.interval
    return f" (less the mixture's {less.value:+.4f}, 95 % interval {low:+.4f} to {high:+.4f})"


# The picture -----------------------------------------------------------------------------------------------------------

_DRAWN = {
    "mean": "components' mean",
    "ensemble": "ensemble,\nequal weights",
    "uniform": "mixture,\nequal weights",
    "mixture": "mixture,\nfitted weights",
    "gate": "mixture,\nweights by the text",
}


def report_figure(report: MixtureReport) -> Figure:
    """Losses with their intervals, and the weights. It holds no text from files; components are numbered as they were given."""
    count = len(report.weights_K)
    figure = new_figure(10, max(3.5, 0.42 * len(report.lines) + 1))
    losses, weights = figure.subplots(1, 2, width_ratios=[3, 1])
    dots = [
        Dot(
            _DRAWN.get(line.kind, f"component {at}"),
            line.nll.value,
            line.nll.interval,
            accented=line.kind in ("mixture", "gate"),
        )
        for at, line in enumerate(report.lines, start=1)
        # The best component is among the components.
        if line.kind != "best"
    ]
    draw_dots(losses, dots)
    weights.barh(range(count), report.weights_K, color=FAINT)
    weights.set_yticks(range(count), [f"component {k + 1}" for k in range(count)], fontsize=9)
    weights.invert_yaxis()
    weights.set_xlim(0, 1)
    weights.set_title(f"Weights (as many as {report.effective:.1f})", loc="left")
    for axes in (losses, weights):
        plain_axes(axes, "x")
    return figure
