"""How a run's result is measured, and how much of the run's time that takes.

The work is counted in positions that the model reads, not timed. So a run is measured alike on every machine, and also when it
was stopped and resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from sordino.evaluation.analysis.inspection import affordable
from sordino.evaluation.config import DistanceConfig, EvaluateConfig
from sordino.evaluation.report import Report
from sordino.evaluation.scoring import Progress
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.training.config import TrainConfig
from sordino.training.events import OnEvent, Working

# The share of the training's time that a quick measurement may take.
SHARE = 0.25
# A forward pass takes a little less than half as long as a step over the same tokens.
PASSES_A_STEP = 2.0
# Generating a token costs about as much as reading this many positions.
POSITIONS_A_GENERATED_TOKEN = 20
# The most positions that an inspection may read: shortened prompts, each with its text.
INSPECTION_POSITIONS = 4_800
LIMIT = 2048
# The most instructions that are made from metadata.
MOST_INSTRUCTIONS = 3
# A share of the gain that is kept after other text needs at least so many held-out tokens.
LEAST_HELDOUT = 256
# Positions beside prompt, other text and row: BOS, and the break between two texts.
_BETWEEN = 6

# In the order in which they run.
Part = Literal["samples", "heldout", "off_domain", "distance", "inspection"]
_NAMES: Mapping[Part, str] = {
    "samples": "samples",
    "heldout": "held-out texts",
    "off_domain": "a text in another voice",
    "distance": "after other text",
    "inspection": "each virtual token",
}


class MeasureResult(Protocol):
    """Measures the held-out results in place of `evaluate`. positions: how many it reads, without the text in another voice."""

    @property
    def positions(self) -> int: ...

    def __call__(self, prompt: SinglePrompt, label: str, judging: Judging, progress: Progress, /) -> Report: ...


@dataclass(frozen=True)
class Judging:
    """How a run's result is measured, after training. instructions: to compare with, by default the first `most_instructions`
    that the metadata suggest. parts: what is done. inspection: positions that it may run. measure: in place of `evaluate`.
    """

    config: EvaluateConfig
    instructions: tuple[str, ...] = ()
    most_instructions: int = MOST_INSTRUCTIONS
    parts: frozenset[Part] = field(default=frozenset({"samples", "heldout", "off_domain", "inspection"}))
    inspection: int = INSPECTION_POSITIONS
    measure: MeasureResult | None = None


@dataclass(frozen=True)
class RunSize:
    """What a run reads. steps: taken, or to be taken. step_positions: of one step, those of the soft prompt included. heldout:
    tokens of the held-out texts, 0 where there are none. context: positions that the base model has.
    """

    steps: int
    step_positions: float
    heldout: int
    context: int

    @property
    def step_work(self) -> float:
        """Positions that a step costs, as if they were read forward alone."""
        return PASSES_A_STEP * self.step_positions


def judging_of(config: TrainConfig, size: RunSize, measure: MeasureResult | None = None) -> Judging:
    """The measurement that the settings ask for: everything, what fits into SHARE of the training, or nothing.

    It needs no more memory than the training. `sordino evaluate` is for a thorough one.
    """
    rows = min(config.row_tokens, EvaluateConfig().row_tokens)
    settings = EvaluateConfig(
        limit=LIMIT, excerpt_draws=1, row_tokens=rows, pass_tokens=config.pass_tokens, objective=config.objective
    )
    whole = Judging(settings, measure=measure)
    full = _behind_text(whole, config, size, DistanceConfig((0, 256, 768), ("foreign",)))
    if config.measure == "none":
        return replace(whole, parts=frozenset())
    if config.measure == "full":
        return full
    room = SHARE * size.steps * size.step_work
    short = replace(
        whole,
        config=replace(settings, excerpt_tokens=(64, 256)),
        most_instructions=1,
        parts=frozenset({"samples", "heldout", "off_domain"}),
    )
    least = replace(
        short, config=replace(settings, excerpt_tokens=(64,)), parts=frozenset({"samples", "heldout"})
    )  # fmt: skip
    nearer = _behind_text(whole, config, size, DistanceConfig((0, 256), ("foreign",)))
    briefly = _behind_text(short, config, size, DistanceConfig((0, 256), ("foreign",), limit=384, parts=1))
    for choice, fewest in ((full, 1024), (nearer, 1024), (briefly, 512), (short, 512)):
        fitted = _fitted(choice, config, size, room, fewest)
        if work(fitted, config, size) <= room:
            return fitted
    # For a very short run this is more than SHARE: fewer tokens would say nothing.
    return _fitted(least, config, size, room, 256)


def _behind_text(judging: Judging, config: TrainConfig, size: RunSize, distance: DistanceConfig) -> Judging:
    """Also measure what is left of the gain after other text, at the distances that fit the model's context."""
    rows = min(config.row_tokens, distance.row_tokens)
    room = size.context - config.tokens - rows - _BETWEEN
    fits = tuple(far for far in distance.distances if far <= room)
    if len(fits) < 2 or size.heldout < LEAST_HELDOUT or judging.measure is not None:
        return judging
    settings = replace(judging.config, distance=replace(distance, distances=fits, row_tokens=rows))
    return replace(judging, config=settings, parts=judging.parts | {"distance"})


def positions(judging: Judging, config: TrainConfig, size: RunSize) -> Mapping[Part, float]:
    """How many positions each part of a measurement costs."""
    settings = judging.config
    # Keys and values have no rows to leave out one by one.
    targets = affordable(config.tokens, judging.inspection) if config.kind == "embedding" else 0
    # No prompt, the soft prompt as its file is and, where that holds it, not held, an instruction and an excerpt.
    reach = (
        settings.distance.positions(4 + bool(config.hold), size.heldout) if settings.distance and size.heldout else 0
    )
    known: dict[Part, float] = {
        "samples": config.sample_tokens * POSITIONS_A_GENERATED_TOKEN,
        "heldout": _heldout(judging, config, size) if size.heldout else 0,
        "off_domain": 2 * settings.limit + config.tokens if size.heldout else 0,
        "distance": reach,
        "inspection": (config.tokens + 2) * (config.tokens + targets) if targets else 0,
    }
    return {part: cost for part, cost in known.items() if part in judging.parts and cost}


def work(judging: Judging, config: TrainConfig, size: RunSize) -> float:
    """Positions that a measurement costs in all."""
    return sum(positions(judging, config, size).values())


def _heldout(judging: Judging, config: TrainConfig, size: RunSize) -> int:
    if judging.measure is not None:
        return judging.measure.positions
    settings, instructions = judging.config, len(judging.instructions) or judging.most_instructions
    conditions = 2 + instructions + settings.excerpt_draws * len(settings.excerpt_tokens)
    in_front = config.tokens + settings.excerpt_draws * sum(settings.excerpt_tokens) + 20 * judging.most_instructions
    return min(settings.limit, size.heldout) * conditions + in_front


def _fitted(judging: Judging, config: TrainConfig, size: RunSize, room: float, fewest: int) -> Judging:
    """Measure on as many tokens as fit, between `fewest` and LIMIT."""
    for limit in range(LIMIT, fewest, -128):
        fitted = replace(judging, config=replace(judging.config, limit=limit))
        if work(fitted, config, size) <= room:
            return fitted
    return replace(judging, config=replace(judging.config, limit=fewest))


class MeasuringBar:
    """The progress of the whole measuring. costs: of its parts, in their order."""

    def __init__(self, costs: Mapping[Part, float], on_event: OnEvent) -> None:
        self._costs, self._on_event = costs, on_event

    def progress(self, *parts: Part) -> Callable[[int, int], None]:
        """For work that reports (done, total) of these parts one after another, each from the beginning."""
        left = [part for part in parts if part in self._costs]
        last = 0

        def report(done: int, total: int) -> None:
            nonlocal last
            if done < last and len(left) > 1:
                left.pop(0)
            last = done
            self._show(left[0], done / max(total, 1))

        self._show(left[0], 0.0)
        return report

    def _show(self, part: Part, share: float) -> None:
        parts = list(self._costs)
        before = sum(self._costs[one] for one in parts[: parts.index(part)])
        done = before + share * self._costs[part]
        self._on_event(Working(f"Measuring: {_NAMES[part]}", round(done), round(sum(self._costs.values()))))
