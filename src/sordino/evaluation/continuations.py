"""Whether text stays healthy: what the model writes after other text with a soft prompt, held and not held, and without one.

Of the continuations: how many of their pairs of neighbouring tokens differ (distinct-2; Li et al. 2016, arXiv 1510.03055), which
share of four tokens in a row was there before in the same continuation (rep-4; Welleck et al. 2020, arXiv 1908.04319), and their
length. All lines continue the same texts with the same seeds.

Shape key: N continuations, L lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sordino.engine.generate import TextRequest, draw
from sordino.engine.sampling import Sampling
from sordino.evaluation.between import foreign_texts
from sordino.evaluation.conditions import check_room, prompt_condition
from sordino.evaluation.confidence import Units, mean_estimates
from sordino.evaluation.config import ContinuationConfig, DistanceConfig, EvaluateConfig
from sordino.evaluation.continuation_report import ContinuationLine, ContinuationReport
from sordino.evaluation.distance_plan import held_and_not
from sordino.evaluation.scoring import Progress
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import StoredPrompt
from sordino.texts.neutral import BREAK, evaluation_texts

# Different texts that are continued, as far as there are so many continuations.
_OPENINGS = 8
# At once.
_ROWS = 32

Ids = tuple[int, ...]


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
    """With each soft prompt as its file is, with the hold of `settings.distance`, not held, and without one. Raises OutOfMemory."""
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
        drawn = draw(
            base, requests, sampling, rows=_ROWS,
            progress=lambda done, _, before=at * config.count: progress(before + done, total),  # type: ignore[misc]
        )  # fmt: skip
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
    """Of a text's runs of four tokens, those that were there before; 0 where it has none."""
    runs = [ids[at : at + 4] for at in range(len(ids) - 3)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def distinct_share(texts: Sequence[Ids]) -> float:
    """Of all texts' pairs of neighbouring tokens, those that differ; 0 where they have none."""
    pairs = [ids[at : at + 2] for ids in texts for at in range(len(ids) - 1)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0
