"""Soft prompts and their baselines, measured on the same held-out tokens.

Shape key: W windows, C conditions, L lines (conditions of one kind and label averaged), R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sordino.evaluation.conditions import (
    DEFAULT_BASELINES,
    AnyCondition,
    Baselines,
    Condition,
    check_room,
    default_instructions,
    excerpts,
    instruction,
    no_prompt,
    prompt_condition,
    room_in_front,
)
from sordino.evaluation.confidence import (
    Estimate,
    Floats,
    LineEstimates,
    equivalent_length,
    interval,
    mean_estimates,
    units_of,
)
from sordino.evaluation.config import EvaluateConfig
from sordino.evaluation.continuations import check_continuations, measure_continuations
from sordino.evaluation.distance import measure_distance
from sordino.evaluation.distance_plan import plan_distance
from sordino.evaluation.mixed import nll_of_conditions
from sordino.evaluation.report import ConditionLine, Measurement, Report, Worth
from sordino.evaluation.scoring import Progress, behind_text, shifted, target_bytes, windows_behind
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import StoredPrompt, components_of
from sordino.texts.examples import Example
from sordino.texts.pieces import Piece


@dataclass(frozen=True)
class WindowLosses:
    """nll_WC: summed NLL of each window's targets in nats. tokens_W: numbers of targets. pieces: each window's. bytes: of all
    targets' text, UTF-8.
    """

    nll_WC: Floats
    tokens_W: Floats
    pieces: tuple[str, ...]
    bytes: int


def evaluate(
    base: BaseModel,
    prompts: Mapping[str, StoredPrompt],
    heldout: Sequence[Piece],
    config: EvaluateConfig,
    *,
    baselines: Baselines = DEFAULT_BASELINES,
    off_domain: tuple[str, Sequence[Piece]] | None = None,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Measure soft prompts (by label) on held-out texts.

    baselines: instructions, by default made from the soft prompts' descriptions, and training texts for excerpts. off_domain: a
    description and texts in another voice. Raises ConfigError, DataError, OutOfMemory.
    """
    own: list[AnyCondition] = [prompt_condition(base, label, prompt) for label, prompt in prompts.items()]
    texts = baselines.instructions or [
        text for prompt in prompts.values() for text in default_instructions(prompt.metadata)
    ]
    conditions = [*own, no_prompt(base), *(instruction(base, text) for text in dict.fromkeys(texts))]
    for condition in conditions:
        check_room(base, condition, config.row_tokens)
    plan = None
    if config.distance is not None:
        base.check_decoder("the effect at a distance")
        plan = plan_distance(base, prompts, heldout, config.distance, baselines, seed=config.seed)
    if config.continuations is not None:
        check_continuations(base, prompts, config.continuations)
    real, notes = _excerpts_that_fit(base, baselines.texts, config)
    if not texts:
        notes.append("not compared with an instruction, as none was given and there is no description to make one from")
    measured, losses = measure(
        base, [*conditions, *real], heldout, config, text="the held-out texts", progress=progress
    )
    damage = None
    if off_domain is not None:
        text, pieces = off_domain
        damage, _ = measure(base, [*own, no_prompt(base)], pieces, config, text=text, progress=progress)
    sizes = {label: sum(one.n_tokens for one in components_of(prompt)) for label, prompt in prompts.items()}
    distance = None
    if plan is not None:
        distance = measure_distance(base, plan, prompts, config, training=baselines.texts, progress=progress)
        notes += distance.notes
    written = None
    if config.continuations is not None:
        written = measure_continuations(base, prompts, config, progress)
    if base.dtype.itemsize < 4:
        notes.append(f"measured with the base model in {str(base.dtype).removeprefix('torch.')}")
    gained = worth(measured, losses) if real else {}
    return Report(sizes, measured, gained, damage, tuple(notes), distance=distance, continuations=written)


def measure(
    base: BaseModel,
    conditions: Sequence[AnyCondition],
    pieces: Sequence[Piece],
    config: EvaluateConfig,
    *,
    text: str,
    progress: Progress = lambda done, total: None,
) -> tuple[Measurement, LineEstimates]:
    """The loss of the same tokens of `pieces` under every condition. text: what they are, for the user."""
    first = all(condition.length > 0 for condition in conditions)
    texts = list(dict.fromkeys(one.text for one in conditions if isinstance(one, Condition) and one.text))
    windows, *behind = windows_behind(
        base, pieces, texts, row_tokens=config.row_tokens, limit=config.limit, first=first, objective=config.objective
    )
    losses = WindowLosses(
        _nll(base, conditions, windows, dict(zip(texts, behind, strict=True)), config, progress),
        np.array([sum(window.labelled) for window in windows], dtype=float),
        tuple(window.piece for window in windows),
        target_bytes(base, windows),
    )
    return summarise(conditions, losses, config, text=text)


def _nll(
    base: BaseModel,
    conditions: Sequence[AnyCondition],
    windows: Sequence[Example],
    behind: Mapping[str, Sequence[Example]],
    config: EvaluateConfig,
    progress: Progress,
) -> Floats:
    """[W, C]. behind: the windows after a condition's text, its tokens included."""
    pairs = [
        behind_text(one, behind[one.text]) if isinstance(one, Condition) and one.text else (one, windows)
        for one in conditions
    ]
    # With most tokenizers a text in front changes no window: such conditions go through the model together.
    same = [at for at, (_, own) in enumerate(pairs) if list(own) == list(windows)]
    groups = [*([same] if same else []), *([at] for at in range(len(pairs)) if at not in same)]
    nll_WC = np.zeros((len(windows), len(conditions)))
    total, done = len(windows) * len(conditions), 0
    progress(done, total)
    for group in groups:
        chosen, own = [pairs[at][0] for at in group], pairs[group[0]][1]
        for condition in chosen:
            check_room(base, condition, max(len(window.ids) for window in own))
        nll_WC[:, group] = nll_of_conditions(
            base, chosen, own, pass_tokens=config.pass_tokens, progress=shifted(progress, done, total)
        )
        done += len(windows) * len(group)
    return nll_WC


def summarise(
    conditions: Sequence[AnyCondition], losses: WindowLosses, config: EvaluateConfig, *, text: str
) -> tuple[Measurement, LineEstimates]:
    """Losses to lines: draws of one condition averaged, intervals, differences to every soft prompt."""
    tokens_of = {(condition.kind, condition.label): condition.tokens for condition in conditions}
    names = list(tokens_of)
    line_C = np.array([names.index((condition.kind, condition.label)) for condition in conditions])
    nll_WL = np.stack([losses.nll_WC[:, line_C == at].mean(axis=1) for at in range(len(names))], axis=1)
    units = units_of(losses.pieces, losses.tokens_W.astype(int).tolist())
    means = mean_estimates(nll_WL, losses.tokens_W, units, resamples=config.resamples, seed=config.seed)
    bits_L = nll_WL.sum(axis=0) / math.log(2) / max(losses.bytes, 1)
    own = {label: at for at, (kind, label) in enumerate(names) if kind == "soft prompt"}
    lines = tuple(
        ConditionLine(
            kind,
            label,
            tokens_of[kind, label],
            means.of(at),
            float(bits_L[at]),
            {other: means.of(at, less=place) for other, place in own.items() if place != at},
        )
        for at, (kind, label) in enumerate(names)
    )
    pieces, tokens = len(set(losses.pieces)), int(losses.tokens_W.sum())
    return Measurement(text, pieces, tokens, losses.bytes, units.kind, units.count, lines), means


def _excerpts_that_fit(
    base: BaseModel, training: Sequence[Piece], config: EvaluateConfig
) -> tuple[list[Condition], list[str]]:
    if not training:
        return [], ["real excerpts are left out: no training texts were given"]
    room = room_in_front(base, config.row_tokens)
    lengths = [length for length in config.excerpt_tokens if length <= room]
    notes = [f"no excerpts of {n} tokens: the model's context is too short" for n in config.excerpt_tokens if n > room]
    if not lengths:
        return [], notes
    found, short = excerpts(base, training, lengths, draws=config.excerpt_draws, seed=config.seed)
    return found, [*notes, *short]


def worth(measured: Measurement, losses: LineEstimates) -> dict[str, Worth]:
    """What every soft prompt is worth in tokens of the excerpts."""
    at = [n for n, line in enumerate(measured.lines) if line.kind == "excerpt"]
    lengths = [measured.lines[n].tokens for n in at]
    found = {}
    for own, line in enumerate(measured.lines):
        if line.kind != "soft prompt":
            continue
        tokens = equivalent_length(losses.value_L[own], lengths, losses.value_L[at].tolist())
        spread = None
        if losses.drawn_RL is not None:
            drawn = [equivalent_length(float(loss_L[own]), lengths, loss_L[at].tolist()) for loss_L in losses.drawn_RL]
            spread = interval(np.array(drawn), measured.units)
        found[line.label] = Worth(Estimate(tokens, spread), tuple(lengths))
    return found
