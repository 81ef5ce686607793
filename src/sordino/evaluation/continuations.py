"""Whether text stays healthy: what the model writes after other text with a soft prompt, held and not held, and without one.

Of the continuations: how many of their pairs of neighbouring tokens differ (distinct-2; Li et al. 2016, arXiv 1510.03055), which
share of four tokens in a row was there before in the same continuation (rep-4; Welleck et al. 2020, arXiv 1908.04319), and their
length. All lines continue the same texts with the same seeds.

Shape key: N continuations, L lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sordino.engine.generate import TextRequest, draw
from sordino.engine.sampling import Sampling
from sordino.evaluation.between import foreign_texts
from sordino.evaluation.conditions import NO_PROMPT, check_room, prompt_condition
from sordino.evaluation.confidence import Estimate, Table, Units, cells, mean_estimates
from sordino.evaluation.config import ContinuationConfig, DistanceConfig, EvaluateConfig
from sordino.evaluation.distance_plan import held_and_not
from sordino.evaluation.distance_report import prompt_heading
from sordino.evaluation.scoring import Progress, shifted
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import StoredPrompt
from sordino.texts.neutral import BREAK, evaluation_texts

# Different texts that are continued, as far as there are so many continuations.
_OPENINGS = 8
# At once.
_ROWS = 32

Ids = tuple[int, ...]


@dataclass(frozen=True)
class ContinuationLine:
    """What was written with one soft prompt, or without. label: "" without. hold: of the soft prompt; changed: another than in its
    file. repeated: share of four tokens in a row that were there before; more: that less what repeats without a soft prompt.
    """

    label: str
    hold: int | None
    changed: bool
    distinct: float
    repeated: Estimate
    more: Estimate
    tokens: Estimate

    @property
    def heading(self) -> str:
        return prompt_heading(self.label, self.hold) if self.label else NO_PROMPT


@dataclass(frozen=True)
class ContinuationReport:
    """count: continuations of each line, of at most `tokens` tokens, after `behind` tokens of other text. The last line has no
    soft prompt.
    """

    count: int
    tokens: int
    behind: int
    lines: tuple[ContinuationLine, ...]


def check_continuations(base: BaseModel, prompts: Mapping[str, StoredPrompt], config: ContinuationConfig) -> None:
    """Raises ConfigError where a continuation does not fit the model's context."""
    needed = config.behind + len(base.encode(BREAK)) + config.tokens
    for condition in (prompt_condition(base, label, prompt) for label, prompt in prompts.items()):
        check_room(base, condition, needed, do="leave --continuations out")


def measure_continuations(
    base: BaseModel,
    prompts: Mapping[str, StoredPrompt],
    settings: EvaluateConfig,
    progress: Progress = lambda done, total: None,
) -> ContinuationReport:
    """Write with each soft prompt as in its file, with the hold of `settings.distance`, and not held; and without one.

    Raises OutOfMemory.
    """
    config, far, seed = settings.continuations, settings.distance or DistanceConfig(), settings.seed
    assert config is not None
    judged: list[tuple[str, StoredPrompt | None, int | None, bool]] = [
        (label, *one) for label, prompt in prompts.items() for one in held_and_not(prompt, far.hold)
    ]
    judged.append(("", None, None, False))
    foreign, parts = far.foreign or evaluation_texts(), min(_OPENINGS, config.count)
    openings = foreign_texts(base, foreign, config.behind, parts, seed=seed).texts
    ending, sampling = tuple(base.encode(BREAK)), Sampling(max_tokens=config.tokens)
    total, written = len(judged) * config.count, []
    for at, (_, prompt, _, _) in enumerate(judged):
        requests = [TextRequest((*openings[n % len(openings)], *ending), prompt, seed + n) for n in range(config.count)]
        own = shifted(progress, at * config.count, total)
        drawn = draw(base, requests, sampling, rows=_ROWS, progress=own)
        written.append([tuple(one.token for one in text.tokens) for text in drawn])
    repeated_NL, tokens_NL = (
        np.array([[of(ids) for ids in texts] for texts in written], dtype=float).T for of in (repeated_share, len)
    )
    units = Units(np.arange(config.count), "continuation")
    repeated, tokens = (
        mean_estimates(sums_NL, np.ones(config.count), units, resamples=settings.resamples, seed=seed)
        for sums_NL in (repeated_NL, tokens_NL)
    )
    last = len(judged) - 1
    lines = (
        ContinuationLine(
            label, of, changed, distinct_share(texts), repeated.of(at), repeated.of(at, less=last), tokens.of(at)
        )
        for at, ((label, _, of, changed), texts) in enumerate(zip(judged, written, strict=True))
    )
    return ContinuationReport(config.count, config.tokens, config.behind, tuple(lines))


def repeated_share(ids: Ids) -> float:
    """The share of a text's runs of four tokens that occurred before in it; 0 for a text without such runs."""
    runs = [ids[at : at + 4] for at in range(len(ids) - 3)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def distinct_share(texts: Sequence[Ids]) -> float:
    """The share of distinct pairs among all pairs of neighbouring tokens; 0 if there are none."""
    pairs = [ids[at : at + 2] for ids in texts for at in range(len(ids) - 1)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


# What is shown ---------------------------------------------------------------------------------------------------------


def table(report: ContinuationReport) -> Table:
    """A row for each line."""
    heads = ("continuations", "#distinct-2", "#repeated", "", "#more than without", "", "#tokens")
    rows = [
        [
            line.heading,
            f"{line.distinct:.3f}",
            *cells(line.repeated, "{:.1%}"),
            *cells(line.more if line.label else None, "{:+.1%}"),
            f"{line.tokens.value:.1f}",
        ]
        for line in report.lines
    ]
    return Table(heads, rows, "What the model writes after other text")


def explanation(report: ContinuationReport) -> list[str]:
    """What the table shows."""
    return [
        f"{report.count} continuations of at most {report.tokens} tokens, after {report.behind} tokens of other text; the same "
        "texts and seeds on every line.",
        "Distinct-2: how many of their pairs of neighbouring tokens differ. Repeated: which share of four tokens in a row was "
        "there before in the same continuation.",
    ]


def to_json(report: ContinuationReport) -> dict[str, Any]:
    """As plain JSON."""
    return {
        "count": report.count,
        "tokens": report.tokens,
        "behind": report.behind,
        "lines": [
            {
                "label": line.label or None,
                "hold": line.hold,
                "as_in_file": not line.changed,
                "distinct_2": line.distinct,
                "repeated": asdict(line.repeated),
                "repeated_more_than_without": asdict(line.more),
                "tokens": asdict(line.tokens),
            }
            for line in report.lines
        ],
    }
