"""How far a soft prompt reaches: what is left of its gain after so many tokens of other text.

The gain after d tokens is the loss without anything in front of them less the loss with the soft prompt there, nats a token, over
the same tokens of the held-out texts. Instructions, excerpts and adapters are measured in the soft prompt's place.

A soft prompt and the text after it are one longer prefix. The text for one distance begins with the text for the shorter ones, so
each prefix extends the one before, and every token runs once.

What it costs: a soft prompt and the base model alone run after texts of every kind, other conditions after those of the first
kind only. With the defaults, four conditions and SmolLM2, that is 53,000 positions and 3,000 written tokens.

Shape key: W windows, S distances, L columns (a condition, a kind of text, a distance).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch

from sordino.evaluation.adapters import adapted
from sordino.evaluation.between import BetweenTexts, foreign_texts, own_texts, written_texts
from sordino.evaluation.conditions import AnyCondition, Condition
from sordino.evaluation.confidence import Estimate, Floats, LineEstimates, interval, mean_estimates, units_of
from sordino.evaluation.config import DistanceConfig, EvaluateConfig
from sordino.evaluation.distance_plan import DistancePlan, JudgedCondition
from sordino.evaluation.distance_report import DistanceLine, DistanceReport, named
from sordino.evaluation.mixed import nll_of_conditions
from sordino.evaluation.scoring import Progress
from sordino.forward.encoder_decoder import InputPrefixes
from sordino.forward.longer import extend_prefixes
from sordino.forward.rows import rows_from_examples
from sordino.forward.token_losses import encode_contexts
from sordino.models.base_model import BaseModel
from sordino.models.memory import memory_errors
from sordino.prompts.mixture import StoredPrompt
from sordino.texts.neutral import evaluation_texts
from sordino.texts.pieces import Piece


def measure_distance(
    base: BaseModel,
    plan: DistancePlan,
    prompts: Mapping[str, StoredPrompt],
    config: EvaluateConfig,
    *,
    training: Sequence[Piece] = (),
    progress: Progress = lambda done, total: None,
) -> DistanceReport:
    """training: texts of the same voice, where the held-out ones are too short. Raises OutOfMemory."""
    assert config.distance is not None
    texts = _texts(base, plan, prompts, config.distance, training, seed=config.seed)
    work = [
        (one, [(of, plan.behind(base, one, of)) for of in texts if _is_measured_after(one, of, texts[0])])
        for one in plan.judged
    ]
    count = sum(map(len, plan.windows))
    total, done = count * sum(1 + sum(len(far) for _, far in sets) for _, sets in work), 0
    nll: dict[_Column, Floats] = {}
    progress(done, total)
    for at, (one, sets) in enumerate(work):
        with adapted(base, one.adapter) if one.adapter is not None else nullcontext():
            every = [window for part in plan.windows for window in part]
            nll[at, 0, None] = nll_of_conditions(base, [one.condition], every, pass_tokens=config.pass_tokens)[:, 0]
            done += count
            progress(done, total)
            for of, distances in sets:
                nll_WS = _behind(base, plan, one.condition, of, distances, config.pass_tokens)
                nll |= {(at, d, of): nll_W for d, nll_W in zip(distances, nll_WS.T, strict=True)}
                done += count * len(distances)
                progress(done, total)
    return _report(plan, texts, nll, config)


# (place among the judged, distance, texts between).
_Column = tuple[int, int, BetweenTexts | None]


def _texts(
    base: BaseModel,
    plan: DistancePlan,
    prompts: Mapping[str, StoredPrompt],
    config: DistanceConfig,
    training: Sequence[Piece],
    *,
    seed: int,
) -> list[BetweenTexts]:
    tokens, parts = plan.distances[-1], len(plan.parts)
    found: list[BetweenTexts] = []
    for kind in config.between:
        if kind == "foreign":
            found.append(foreign_texts(base, config.foreign or evaluation_texts(), tokens, parts, seed=seed))
        elif kind == "own":
            found.append(own_texts(base, plan.parts, training, tokens, seed=seed))
        else:
            found += [written_texts(base, label, prompt, tokens, parts, seed=seed) for label, prompt in prompts.items()]
    return found


def _is_measured_after(one: JudgedCondition, texts: BetweenTexts, first: BetweenTexts) -> bool:
    """Whether a condition is measured after these texts. first: the texts that every condition is measured after."""
    kind = one.condition.kind
    everywhere = one.adapter is None and not one.changed and kind in ("no prompt", "soft prompt")
    own = kind != "soft prompt" or texts.writer in ("", one.condition.label)
    return own and (everywhere or texts is first)


def _behind(
    base: BaseModel,
    plan: DistancePlan,
    condition: AnyCondition,
    texts: BetweenTexts,
    distances: Sequence[int],
    pass_tokens: int,
) -> Floats:
    """[W, S]: the windows after the condition and so many tokens of their part's text."""
    found = []
    for part, ids in zip(plan.windows, texts.texts, strict=True):
        windows = [
            replace(w, ids=(*plan.ending, *w.ids), labelled=(False,) * len(plan.ending) + tuple(w.labelled))
            for w in part
        ]
        nll_wS = np.zeros((len(windows), len(distances)))
        longer, at = condition, 0
        for place, distance in enumerate(distances):
            with memory_errors("measuring", "lower --pass-tokens, or give shorter distances"):
                longer, at = _extended(base, longer, ids[at:distance]), distance
            nll_wS[:, place] = nll_of_conditions(base, [longer], windows, pass_tokens=pass_tokens)[:, 0]
        found.append(nll_wS)
    return np.concatenate(found)


def _extended(base: BaseModel, condition: AnyCondition, ids: tuple[int, ...]) -> AnyCondition:
    """`run_text` for mixtures too."""
    if isinstance(condition, Condition):
        return run_text(base, condition, ids)
    components = tuple(run_text(base, component, ids) for component in condition.components)
    return replace(condition, components=components, ids=(*condition.ids, *ids))


@torch.inference_mode()
def run_text(base: BaseModel, condition: Condition, ids: Sequence[int]) -> Condition:
    """The condition with more text after it, as a prefix that has run."""
    longer = condition.behind(ids)
    rows = rows_from_examples([[longer.ids[len(condition.ids) :]]], [0]).to(base.device)
    prefixes = encode_contexts(base, [condition])
    if isinstance(prefixes, InputPrefixes):
        return longer
    return replace(longer, prefix=extend_prefixes(base.network, prefixes, rows))


# Numbers --------------------------------------------------------------------------------------------------------------


def _report(
    plan: DistancePlan, texts: Sequence[BetweenTexts], nll: Mapping[_Column, Floats], config: EvaluateConfig
) -> DistanceReport:
    windows = [window for part in plan.windows for window in part]
    tokens_W = np.array([sum(window.labelled) for window in windows], dtype=float)
    units = units_of([window.piece for window in windows], tokens_W.astype(int).tolist())
    means = mean_estimates(
        np.stack(list(nll.values()), axis=1), tokens_W, units, resamples=config.resamples, seed=config.seed
    )
    place = {column: at for at, column in enumerate(nll)}
    lines, notes = [], list(plan.notes)
    for of in texts:
        if short := [f"{d:,}" for d in plan.distances if d > of.tokens]:
            notes.append(f"{named(of.kind, of.writer)}: there are {of.tokens:,} tokens, too few for {', '.join(short)}")
        for at, one in enumerate(plan.judged):
            far = [0, *(d for d in plan.distances if (at, d, of) in place)]
            if at == 0 or len(far) == 1:
                continue
            pairs = {d: (place[0, d, of if d else None], place[at, d, of if d else None]) for d in far}
            lines.append(
                DistanceLine(
                    of.kind,
                    of.writer,
                    one.condition.kind,
                    one.condition.label,
                    one.hold,
                    one.changed,
                    one.condition.length,
                    {d: means.of(none, less=own) for d, (none, own) in pairs.items()},
                    {
                        d: share
                        for d, pair in pairs.items()
                        if d and (share := _share(means, pair, pairs[0])) is not None
                    },
                )
            )
    return DistanceReport(
        plan.distances, int(tokens_W.sum()), len(plan.parts), units.kind, units.count, tuple(lines), tuple(notes)
    )


def _share(means: LineEstimates, far: tuple[int, int], near: tuple[int, int]) -> Estimate | None:
    """The gain far away over the gain at 0, each of two columns; None where no gain at 0 is certain."""
    at_0 = means.of(near[0], less=near[1])
    if at_0.value <= 0 or not (at_0.interval is None or at_0.excludes_zero):
        return None
    value = means.of(far[0], less=far[1]).value / at_0.value
    if means.drawn_RL is None:
        return Estimate(value, None)
    far_R, near_R = (means.drawn_RL[:, none] - means.drawn_RL[:, own] for none, own in (far, near))
    # A draw without a gain at 0 has no share. There are few: the interval of the gain leaves out 0.
    gained_R = near_R > 0
    return Estimate(value, interval(far_R[gained_R] / near_R[gained_R], means.units))
