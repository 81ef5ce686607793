"""What is measured after other text: conditions, the parts of the held-out texts, and the distances that there is room for. All
of it is checked before anything runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sordino.evaluation.between import BetweenTexts, parts_of
from sordino.evaluation.conditions import (
    AnyCondition,
    Baselines,
    Condition,
    default_instructions,
    excerpts,
    instruction,
    no_prompt,
    prompt_condition,
    room_in_front,
)
from sordino.evaluation.config import EXCERPT_TOKENS, DistanceConfig
from sordino.evaluation.scoring import windows_of
from sordino.forward.placement import span_in
from sordino.forward.prefix import check_spans
from sordino.models.base_model import BaseModel
from sordino.models.context import check_context
from sordino.prompts.mixture import StoredPrompt, components_of, with_attention
from sordino.texts.examples import Example
from sordino.texts.neutral import BREAK
from sordino.texts.pieces import Piece

_EXCERPT = 256


@dataclass(frozen=True, eq=False)
class JudgedCondition:
    """A condition that is measured after other text. hold: of its soft prompt; changed: another one than in the file. adapter: in
    the network while it is measured.
    """

    condition: AnyCondition
    hold: int | None = None
    changed: bool = False
    adapter: Path | None = None


@dataclass(frozen=True, eq=False)
class DistancePlan:
    """What is measured, checked before anything runs. judged: the first is the base model alone. parts: of the held-out texts;
    windows: of each. distances: those that some soft prompt has room for.
    """

    judged: tuple[JudgedCondition, ...]
    parts: tuple[tuple[Piece, ...], ...]
    windows: tuple[tuple[Example, ...], ...]
    ending: tuple[int, ...]
    distances: tuple[int, ...]
    notes: tuple[str, ...]

    def room(self, base: BaseModel, one: JudgedCondition, distance: int) -> bool:
        return one.condition.length + self.text_positions(distance) <= base.context_length

    def behind(self, base: BaseModel, one: JudgedCondition, texts: BetweenTexts) -> list[int]:
        """The distances above 0 that it is measured at."""
        return [d for d in self.distances if 0 < d <= texts.tokens and self.room(base, one, d)]

    def text_positions(self, distance: int) -> int:
        """Positions of a text between and the longest window."""
        longest = max(len(window.ids) for part in self.windows for window in part)
        return longest + (distance + len(self.ending) if distance else 0)


def plan_distance(
    base: BaseModel,
    prompts: Mapping[str, StoredPrompt],
    heldout: Sequence[Piece],
    config: DistanceConfig,
    baselines: Baselines,
    *,
    seed: int,
) -> DistancePlan:
    """Raises ConfigError where no distance fits the model's context, or the model's family takes no hold; DataError."""
    judged = [JudgedCondition(no_prompt(base)), *_of_prompts(base, prompts, config.hold)]
    texts = baselines.instructions or default_instructions(next(iter(prompts.values())).metadata)
    judged += [JudgedCondition(instruction(base, text)) for text in texts[:1]]
    judged += [JudgedCondition(one) for one in _excerpt(base, baselines.texts, config, seed=seed)]
    judged += [
        JudgedCondition(replace(no_prompt(base), label=f"LoRA {path.name}"), adapter=path) for path in config.adapters
    ]
    parts = parts_of(heldout, config.parts)
    windows = tuple(
        tuple(
            windows_of(
                base, part, row_tokens=config.row_tokens, limit=-(-config.limit // len(parts)), first=bool(base.bos_ids)
            )
        )
        for part in parts
    )
    plan = DistancePlan(tuple(judged), tuple(parts), windows, tuple(base.encode(BREAK)), config.distances, ())
    own = [one for one in judged if one.condition.kind == "soft prompt"]
    fits = tuple(d for d in config.distances if any(plan.room(base, one, d) for one in own))
    if len(fits) < 2:
        check_context(
            {"in front": min(one.condition.length for one in own), "text": plan.text_positions(config.distances[1])},
            base.context_length,
            what="a soft prompt with the text after it",
            where="--distance",
            do="give shorter distances",
        )
    plan = replace(plan, distances=fits)
    return replace(plan, notes=tuple(_notes_on_room(base, plan, config.distances)))


def _of_prompts(base: BaseModel, prompts: Mapping[str, StoredPrompt], hold: int | None) -> Iterator[JudgedCondition]:
    for label, prompt in prompts.items():
        for one, own, changed in held_and_not(prompt, hold):
            check_spans(base.network, [span_in(base, component) for component in components_of(one)])
            yield JudgedCondition(prompt_condition(base, label, one), own, changed)


def held_and_not(prompt: StoredPrompt, hold: int | None) -> Iterator[tuple[StoredPrompt, int | None, bool]]:
    """A soft prompt as its file is, with `hold`, and not held; of each the hold, and whether its file has another."""
    own = {component.metadata.attention.hold for component in components_of(prompt) if component is not None}
    yield prompt, max((of for of in own if of), default=None), False
    for tried in dict.fromkeys((hold, None)):
        if own != {tried}:
            yield with_attention(prompt, tried or "off", None), tried, True


def _excerpt(base: BaseModel, training: Sequence[Piece], config: DistanceConfig, *, seed: int) -> list[Condition]:
    """The longest that the training texts and the context have room for, up to _EXCERPT; none without such texts."""
    room = room_in_front(base, config.row_tokens)
    lengths = [length for length in EXCERPT_TOKENS if length <= min(_EXCERPT, room)]
    return excerpts(base, training, lengths, draws=1, seed=seed)[0][-1:] if training and lengths else []


def _notes_on_room(base: BaseModel, plan: DistancePlan, distances: Sequence[int]) -> Iterator[str]:
    """plan: with the distances that some soft prompt has room for. distances: all."""
    room = f"no room in the model's context of {base.context_length:,} positions"
    if gone := [f"{d:,}" for d in distances if d not in plan.distances]:
        yield f"nothing is measured after {', '.join(gone)} tokens: {room}"
    for one in plan.judged:
        if missing := [f"{d:,}" for d in plan.distances if not plan.room(base, one, d)]:
            yield f"{one.condition.label[:40]} is not measured after {', '.join(missing)} tokens: {room}"
