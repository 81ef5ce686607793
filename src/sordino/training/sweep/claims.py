"""What a sweep says about the ablations of Lester et al. 2021 (arXiv 2104.08691, section 3.2), from its results alone. Pure.

Runs are compared that went to their end, each value with its best other settings (chosen on validation), on held-out texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sordino.training.sweep.results import Level, ModelOutcome, levels

Verdict = Literal["held", "did not hold", "cannot be said"]
LONG = 20
# Less than this share of what the short prompt gains over none is called marginal.
MARGINAL = 0.1


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, whether it held here, and the numbers that say so."""

    claim: str
    verdict: Verdict
    evidence: str


def claims(models: Sequence[ModelOutcome]) -> list[Claim]:
    """All claims that a sweep can speak to, for each model and between models."""
    found = [claim for model in models for claim in (_length(model), _start(model))]
    return [*found, _size(models)]


def _length(model: ModelOutcome) -> Claim:
    said = f"{model.model}: more than {LONG} tokens gain little"
    found = levels(model.runs, "tokens")
    short = [level for level in found if level.value <= LONG]
    long = [level for level in found if level.value > LONG]
    if not short or not long:
        return Claim(said, "cannot be said", f"no finished runs on both sides of {LONG} tokens (try --full)")
    best_short, best_long = (min(side, key=lambda level: level.validation) for side in (short, long))
    gained, more = model.none.nll - best_short.nll, best_short.nll - best_long.nll
    evidence = (
        f"held-out loss {best_short.nll:.4f} with {best_short.value}{_spread(best_short)}, {best_long.nll:.4f} with "
        f"{best_long.value}{_spread(best_long)}, {model.none.nll:.4f} without: {more:+.4f} on top of {gained:.4f}"
    )
    # What is within the spread of the seeds is no gain either.
    little = max(MARGINAL * gained, best_short.spread() or 0.0, best_long.spread() or 0.0)
    return Claim(said, "held" if more <= little else "did not hold", evidence)


def _start(model: ModelOutcome) -> Claim:
    said = f"{model.model}: words beat random numbers as a start"
    found = {level.value: level for level in levels(model.runs, "init")}
    words = [level for value, level in found.items() if value != "random"]
    if "random" not in found or not words:
        return Claim(said, "cannot be said", "no finished runs from random numbers and from words (try --full)")
    best, random = min(words, key=lambda level: level.validation), found["random"]
    evidence = (
        f"held-out loss {random.nll:.4f} from random numbers{_spread(random)}, "
        f"{best.nll:.4f} from {best.value}{_spread(best)}"
    )
    noise = max(best.spread() or 0.0, random.spread() or 0.0)
    if abs(random.nll - best.nll) <= noise:
        return Claim(said, "cannot be said", f"{evidence}: the difference is within the spread of the seeds")
    return Claim(said, "held" if best.nll < random.nll else "did not hold", evidence)


def _size(models: Sequence[ModelOutcome]) -> Claim:
    said = "the larger model gains more from a soft prompt"
    done = sorted((model for model in models if model.best is not None), key=lambda model: model.parameters)
    if len(done) < 2 or done[0].parameters == done[-1].parameters:
        return Claim(said, "cannot be said", "needs finished runs on two models of different size")
    gains = [model.none.bits_per_byte - _best(model).bits_per_byte for model in done]
    evidence = "; ".join(
        f"{model.model} ({model.parameters / 1e6:.0f} million) {model.none.bits_per_byte:.4f} to "
        f"{_best(model).bits_per_byte:.4f} bits a byte, {gain:.4f} gained"
        for model, gain in zip(done, gains, strict=True)
    )
    return Claim(said, "held" if gains[-1] > gains[0] else "did not hold", evidence)


def _best(model: ModelOutcome) -> Level:
    (level,) = levels(model.runs, "model")
    return level


def _spread(level: Level) -> str:
    spread = level.spread()
    return "" if spread is None else f" (± {spread:.4f} over {len(level.runs)} seeds)"
