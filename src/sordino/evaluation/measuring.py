"""Soft prompts, and what one would do without them, measured on the same held-out tokens.

Shape key: W windows, C conditions, L lines (conditions of one kind and label averaged), U units of the bootstrap, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sordino.errors import ConfigError
from sordino.evaluation.conditions import (
    Condition,
    Kind,
    default_instructions,
    excerpts,
    instruction,
    no_prompt,
    soft_prompt,
)
from sordino.evaluation.confidence import (
    MIN_UNITS,
    Floats,
    Units,
    equivalent_length,
    interval,
    resampled_means,
    units_of,
)
from sordino.evaluation.mixed import MixedCondition, mixture, nll_of_conditions
from sordino.evaluation.report import Estimate, Line, Measurement, Report, Worth
from sordino.evaluation.scoring import Progress, behind_text, target_bytes, windows_behind
from sordino.forward.placement import most_positions
from sordino.models.base_model import BaseModel
from sordino.models.context import check_context
from sordino.prompts.mixture import Mixture, StoredPrompt, components_of
from sordino.texts.examples import Example
from sordino.texts.pieces import Piece


@dataclass(frozen=True)
class EvaluateConfig:
    """row_tokens: tokens of a window. excerpt_tokens: lengths of real text to compare with, ascending. excerpts: draws of each.
    limit: most held-out tokens that are measured, spread evenly over the texts (0: all). pass_tokens: most positions in one
    forward pass.
    """

    row_tokens: int = 128
    excerpt_tokens: tuple[int, ...] = (20, 64, 128, 256, 512)
    excerpts: int = 3
    limit: int = 8192
    resamples: int = 10_000
    pass_tokens: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("--row-tokens", self.row_tokens, 2)
        _at_least("--excerpt-draws", self.excerpts, 1)
        _at_least("--limit", self.limit, 0)
        _at_least("--resamples", self.resamples, 100)
        _at_least("--pass-tokens", self.pass_tokens, 1)
        if (
            not self.excerpt_tokens
            or min(self.excerpt_tokens) < 1
            or list(self.excerpt_tokens) != sorted(set(self.excerpt_tokens))
        ):
            raise ConfigError(
                "not a list of lengths", where="excerpt_tokens", expected="ascending", got=self.excerpt_tokens
            )


class Headed(Protocol):
    """What a line of the report says of a condition."""

    @property
    def kind(self) -> Kind: ...

    @property
    def label(self) -> str: ...

    @property
    def tokens(self) -> int: ...


@dataclass(frozen=True)
class Losses:
    """nll_WC: summed NLL of each window's targets in nats. tokens_W: how many targets. pieces: each window's. bytes: of all
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
    instructions: Sequence[str] = (),
    training: Sequence[Piece] = (),
    off_domain: tuple[str, Sequence[Piece]] | None = None,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Measure soft prompts (by label) on held-out texts.

    instructions: by default what the soft prompts' files say about themselves. training: where excerpts are taken from; without
    it there are none. off_domain: a description and texts in another voice. Raises ConfigError, DataError, OutOfMemory.
    """
    alone: list[Condition | MixedCondition] = [
        mixture(base, label, prompt) if isinstance(prompt, Mixture) else soft_prompt(base, label, prompt)
        for label, prompt in prompts.items()
    ]
    written = instructions or [text for prompt in prompts.values() for text in default_instructions(prompt.metadata)]
    conditions = [*alone, no_prompt(base), *(instruction(base, text) for text in dict.fromkeys(written))]
    for condition in conditions:
        check_room(base, condition, config.row_tokens)
    real, notes = _excerpts_that_fit(base, training, config)
    measured, rates_RL = measure(
        base, [*conditions, *real], heldout, config, text="the held-out texts", progress=progress
    )
    damage = None
    if off_domain is not None:
        text, pieces = off_domain
        damage, _ = measure(base, [*alone, no_prompt(base)], pieces, config, text=text, progress=progress)
    sizes = {label: sum(one.n_tokens for one in components_of(prompt) if one) for label, prompt in prompts.items()}
    return Report(sizes, measured, _worth(measured, rates_RL, prompts) if real else {}, damage, tuple(notes))


def measure(
    base: BaseModel,
    conditions: Sequence[Condition | MixedCondition],
    pieces: Sequence[Piece],
    config: EvaluateConfig,
    *,
    text: str,
    progress: Progress = lambda done, total: None,
) -> tuple[Measurement, Floats | None]:
    """The loss of the same tokens of `pieces` under every condition, and the lines' resampled losses [R, L] if there is text
    enough to draw from.
    """
    first = all(condition.length > 0 for condition in conditions)
    texts = list(dict.fromkeys(one.text for one in conditions if isinstance(one, Condition) and one.text))
    windows, *behind = windows_behind(
        base, pieces, texts, row_tokens=config.row_tokens, limit=config.limit, first=first
    )
    nll_WC = _nll(base, conditions, windows, dict(zip(texts, behind, strict=True)), config, progress)
    losses = Losses(
        nll_WC,
        np.array([sum(window.labelled) for window in windows], dtype=float),
        tuple(window.piece for window in windows),
        target_bytes(base, windows),
    )
    return summarise(conditions, losses, config, text=text)


def _nll(
    base: BaseModel,
    conditions: Sequence[Condition | MixedCondition],
    windows: Sequence[Example],
    behind: Mapping[str, Sequence[Example]],
    config: EvaluateConfig,
    progress: Progress,
) -> Floats:
    """[W, C]. behind: the windows behind a condition's text, its tokens included."""
    fronts = [
        behind_text(one, behind[one.text]) if isinstance(one, Condition) and one.text else (one, windows)
        for one in conditions
    ]
    # Where a text in front changes no window, as with most tokenizers, all go through the model together.
    same = [at for at, (_, own) in enumerate(fronts) if list(own) == list(windows)]
    nll_WC = np.zeros((len(windows), len(conditions)))
    total, done = len(windows) * len(conditions), 0
    for group in [*([same] if same else []), *([at] for at in range(len(fronts)) if at not in same)]:
        own = fronts[group[0]][1]
        for at in group:
            check_room(base, fronts[at][0], max(len(window.ids) for window in own))

        def told(now: int, _: int, before: int = done) -> None:
            progress(before + now, total)

        nll_WC[:, group] = nll_of_conditions(
            base, [fronts[at][0] for at in group], own, pass_tokens=config.pass_tokens, progress=told
        )
        done += len(windows) * len(group)
    return nll_WC


def summarise(
    conditions: Sequence[Headed], losses: Losses, config: EvaluateConfig, *, text: str
) -> tuple[Measurement, Floats | None]:
    """Losses to lines: draws of one condition averaged, intervals, differences to every soft prompt."""
    heads = {(condition.kind, condition.label): condition.tokens for condition in conditions}
    names = list(heads)
    line_C = np.array([names.index((condition.kind, condition.label)) for condition in conditions])
    nll_WL = np.stack([losses.nll_WC[:, line_C == at].mean(axis=1) for at in range(len(names))], axis=1)
    tokens = losses.tokens_W.sum()
    means_L = nll_WL.sum(axis=0) / tokens
    units = units_of(losses.pieces, losses.tokens_W.astype(int).tolist())
    rates_RL = _resampled(units, nll_WL, losses.tokens_W, config)
    own = {label: at for at, (kind, label) in enumerate(names) if kind == "soft prompt"}
    lines = tuple(
        Line(
            kind,
            label,
            heads[kind, label],
            _estimate(means_L, rates_RL, at, units.count),
            float(means_L[at] * tokens / math.log(2) / max(losses.bytes, 1)),
            {
                other: _estimate(means_L, rates_RL, at, units.count, less=place)
                for other, place in own.items()
                if place != at
            },
        )
        for at, (kind, label) in enumerate(names)
    )
    measured = Measurement(text, len(set(losses.pieces)), int(tokens), losses.bytes, units.kind, units.count, lines)
    return measured, rates_RL


def _excerpts_that_fit(
    base: BaseModel, training: Sequence[Piece], config: EvaluateConfig
) -> tuple[list[Condition], list[str]]:
    if not training:
        return [], ["real excerpts are left out: the training text is not there (--excerpts says where it is)"]
    room = base.context_length - config.row_tokens - most_positions(base, 0)
    lengths = [length for length in config.excerpt_tokens if length <= room]
    notes = [f"no excerpts of {n} tokens: the model's context is too short" for n in config.excerpt_tokens if n > room]
    if not lengths:
        return [], notes
    found, short = excerpts(base, training, lengths, draws=config.excerpts, seed=config.seed)
    return found, [*notes, *short]


def _resampled(units: Units, nll_WL: Floats, counts_W: Floats, config: EvaluateConfig) -> Floats | None:
    if units.count < MIN_UNITS:
        return None
    sums_UL, tokens_U = units.sums(nll_WL), units.sums(counts_W)
    return resampled_means(sums_UL, tokens_U, resamples=config.resamples, seed=config.seed)


def _estimate(means_L: Floats, rates_RL: Floats | None, at: int, units: int, *, less: int | None = None) -> Estimate:
    """The loss of a line, or its difference to another line's under the same draws."""
    value = float(means_L[at] - (0 if less is None else means_L[less]))
    if rates_RL is None:
        return Estimate(value, None)
    return Estimate(value, interval(rates_RL[:, at] - (0 if less is None else rates_RL[:, less]), units))


def _worth(measured: Measurement, rates_RL: Floats | None, prompts: Mapping[str, StoredPrompt]) -> dict[str, Worth]:
    at = [n for n, line in enumerate(measured.lines) if line.kind == "excerpt"]
    lengths = [measured.lines[n].tokens for n in at]
    curve = [measured.lines[n].nll.value for n in at]
    found = {}
    for label in prompts:
        own = next(n for n, line in enumerate(measured.lines) if (line.kind, line.label) == ("soft prompt", label))
        tokens = equivalent_length(measured.lines[own].nll.value, lengths, curve)
        spread = None
        if rates_RL is not None:
            drawn = [equivalent_length(float(rates[own]), lengths, rates[at].tolist()) for rates in rates_RL]
            spread = interval(np.array(drawn), measured.units)
        found[label] = Worth(Estimate(tokens, spread), tuple(lengths))
    return found


def check_room(base: BaseModel, condition: Condition | MixedCondition, row_tokens: int) -> None:
    """Raise ConfigError unless the condition and a window fit the model's context together."""
    check_context(
        {"in front": condition.length, "text": row_tokens},
        base.context_length,
        what="a window with its context",
        where=f"{condition.kind} {condition.label[:40]!r}",
        do="lower --row-tokens",
    )


def _at_least(flag: str, value: int, low: int) -> None:
    if value < low:
        raise ConfigError("a setting is out of range", where=flag, expected=f"{low} or more", got=value)
