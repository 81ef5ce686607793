"""What came of a sweep, as values: one line per run, one per model, which run won, and what that says. Pure.

The claims are those of the ablations of Lester et al. 2021 (arXiv 2104.08691, section 3.2). Runs are compared that went to their
end, each value with its best other settings (chosen on validation), on held-out texts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sordino.training.sweep.grid import Choice

Verdict = Literal["held", "did not hold", "cannot be said"]
LONG = 20
# Less than this share of what the short prompt gains over none is called marginal.
MARGINAL = 0.1


@dataclass(frozen=True)
class Measured:
    """Loss on texts that no run saw: nats a token, and bits a byte, which models of other vocabularies can be compared in."""

    nll: float
    bits_per_byte: float


@dataclass(frozen=True)
class Outcome:
    """One run. why: "steps", "pruned" or "diverged". validation: the lowest loss, nats a token; curve: (step, loss). rows:
    rows trained on, steps times batch. heldout: of runs that went to their end.
    """

    name: str
    choice: Choice
    why: str
    steps: int
    rows: int
    validation: float
    curve: tuple[tuple[int, float], ...]
    heldout: Measured | None = None

    @property
    def complete(self) -> bool:
        return self.why == "steps" and self.heldout is not None


@dataclass(frozen=True)
class ModelOutcome:
    """The runs of one base model. none: the held-out loss without a soft prompt. validation_bits: bits a byte of its best run on
    the validation set, by which models are compared. seconds: of training, evaluations included.
    """

    model: str
    parameters: int
    none: Measured
    runs: tuple[Outcome, ...]
    validation_bits: float
    seconds: float

    @property
    def best(self) -> Outcome | None:
        """The run with the lowest validation loss among those that went to their end; held-out texts choose nothing."""
        done = [run for run in self.runs if run.complete]
        return min(done, key=lambda run: run.validation, default=None)

    def to_json(self) -> dict[str, Any]:
        # What is no number has no place in JSON.
        return _finite(asdict(self))  # type: ignore[no-any-return]

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> ModelOutcome:
        none, runs = Measured(**stored["none"]), tuple(map(_outcome, stored["runs"]))
        return ModelOutcome(
            **{**stored, "none": none, "runs": runs, "validation_bits": _number(stored["validation_bits"])}
        )


@dataclass(frozen=True)
class Level:
    """A value of a factor with its best other settings: held-out losses of all seeds, chosen by mean validation loss."""

    value: Any
    runs: tuple[Outcome, ...]

    @property
    def validation(self) -> float:
        return statistics.fmean(run.validation for run in self.runs)

    @property
    def losses(self) -> list[Measured]:
        return [run.heldout for run in self.runs if run.heldout is not None]

    @property
    def nll(self) -> float:
        return statistics.fmean(measured.nll for measured in self.losses)

    @property
    def bits_per_byte(self) -> float:
        return statistics.fmean(measured.bits_per_byte for measured in self.losses)

    def spread(self, key: str = "nll") -> float | None:
        """Standard deviation over seeds; None for one."""
        values = [getattr(measured, key) for measured in self.losses]
        return statistics.stdev(values) if len(values) > 1 else None


def winner(models: Sequence[ModelOutcome]) -> tuple[ModelOutcome, Outcome] | None:
    """The model whose best run has the fewest bits a byte on the validation set, and that run; None where none was finished."""
    done = [(model, model.best) for model in models]
    found = [(model, best) for model, best in done if best is not None]
    return min(found, key=lambda pair: (_last(pair[0].validation_bits), pair[1].validation), default=None)


def levels(runs: Sequence[Outcome], factor: str) -> list[Level]:
    """For each value of a factor the setting of all others that did best on validation, with every seed it finished."""
    found = []
    done = [run for run in runs if run.complete]
    for value in dict.fromkeys(getattr(run.choice, factor) for run in done):
        alike: dict[tuple[Any, ...], list[Outcome]] = {}
        for run in done:
            if getattr(run.choice, factor) == value:
                key = tuple(v for f, v in asdict(run.choice).items() if f != "seed" or factor == "seed")
                alike.setdefault(key, []).append(run)
        best = min(alike.values(), key=lambda group: statistics.fmean(run.validation for run in group))
        found.append(Level(value, tuple(best)))
    return found


def cost(models: Sequence[ModelOutcome], steps: int, batch: int) -> tuple[int, int]:
    """(rows that were trained on, rows of all runs to their end)."""
    runs = [run for model in models for run in model.runs]
    return sum(run.rows for run in runs), len(runs) * steps * batch


# Claims ---------------------------------------------------------------------------------------------------------------


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
    claim = f"{model.model}: more than {LONG} tokens gain little"
    found = levels(model.runs, "tokens")
    short = [level for level in found if level.value <= LONG]
    long = [level for level in found if level.value > LONG]
    if not short or not long:
        return Claim(claim, "cannot be said", f"no finished runs on both sides of {LONG} tokens (try --full)")
    best_short, best_long = (min(side, key=lambda level: level.validation) for side in (short, long))
    gained, more = model.none.nll - best_short.nll, best_short.nll - best_long.nll
    evidence = (
        f"held-out loss {best_short.nll:.4f} with {best_short.value}{_spread(best_short)}, {best_long.nll:.4f} with "
        f"{best_long.value}{_spread(best_long)}, {model.none.nll:.4f} without: {more:+.4f} on top of {gained:.4f}"
    )
    # What is within the spread of the seeds is no gain either.
    little = max(MARGINAL * gained, best_short.spread() or 0.0, best_long.spread() or 0.0)
    return Claim(claim, "held" if more <= little else "did not hold", evidence)


def _start(model: ModelOutcome) -> Claim:
    claim = f"{model.model}: words beat random numbers as a start"
    found = {level.value: level for level in levels(model.runs, "init")}
    words = [level for value, level in found.items() if value != "random"]
    if "random" not in found or not words:
        return Claim(claim, "cannot be said", "no finished runs from random numbers and from words (try --full)")
    best, random = min(words, key=lambda level: level.validation), found["random"]
    evidence = (
        f"held-out loss {random.nll:.4f} from random numbers{_spread(random)}, "
        f"{best.nll:.4f} from {best.value}{_spread(best)}"
    )
    noise = max(best.spread() or 0.0, random.spread() or 0.0)
    if abs(random.nll - best.nll) <= noise:
        return Claim(claim, "cannot be said", f"{evidence}: the difference is within the spread of the seeds")
    return Claim(claim, "held" if best.nll < random.nll else "did not hold", evidence)


def _size(models: Sequence[ModelOutcome]) -> Claim:
    claim = "the larger model gains more from a soft prompt"
    done = sorted((model for model in models if model.best is not None), key=lambda model: model.parameters)
    if len(done) < 2 or done[0].parameters == done[-1].parameters:
        return Claim(claim, "cannot be said", "needs finished runs on two models of different size")
    gains = [model.none.bits_per_byte - _best(model).bits_per_byte for model in done]
    evidence = "; ".join(
        f"{model.model} ({model.parameters / 1e6:.0f} million) {model.none.bits_per_byte:.4f} to "
        f"{_best(model).bits_per_byte:.4f} bits a byte, {gain:.4f} gained"
        for model, gain in zip(done, gains, strict=True)
    )
    return Claim(claim, "held" if gains[-1] > gains[0] else "did not hold", evidence)


def _best(model: ModelOutcome) -> Level:
    (level,) = levels(model.runs, "model")
    return level


def _spread(level: Level) -> str:
    spread = level.spread()
    return "" if spread is None else f" (± {spread:.4f} over {len(level.runs)} seeds)"


# JSON -----------------------------------------------------------------------------------------------------------------


def _outcome(stored: Mapping[str, Any]) -> Outcome:
    parts = {
        "choice": Choice(**{"kind": "embedding", **stored["choice"]}),
        "validation": _number(stored["validation"]),
        "curve": tuple((step, _number(loss)) for step, loss in stored["curve"]),
        "heldout": Measured(**stored["heldout"]) if stored["heldout"] else None,
    }
    return Outcome(**{**stored, **parts})


def _last(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _number(value: float | None) -> float:
    return math.inf if value is None else value


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
