"""The messages of a tab, and how they become requests of the engine: a text is cut to what fits the context.

A story slides: memory and author's note stay, the oldest text between them is dropped.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StrictBool

from sordino.engine.requests import Request, request_for, room_for_text
from sordino.engine.sampling import Sampling
from sordino.errors import ConfigError
from sordino.models.chat_template import chat_ids
from sordino.models.description import DescribedModel
from sordino.prompts.attention import LEAST_STRENGTH, MOST_STRENGTH, OFFERED_HOLD, Hold
from sordino.prompts.mixture import Mixture, StoredPrompt, components_of, with_attention
from sordino.server.bodies import StrictBody, few_entries
from sordino.server.generation import leading_positions
from sordino.server.openai_fields import Items
from sordino.server.serving import Serving

# Columns of a comparison.
MOST_COLUMNS = 8
# Lines of the story that come after the author's note, as in KoboldAI.
NOTE_DEPTH = 3


class _Strict(StrictBody):
    model_config = ConfigDict(allow_inf_nan=False)


class SamplingFields(_Strict):
    """How tokens are drawn: see engine.sampling.Sampling."""

    max_tokens: Annotated[int, Field(ge=1)] = 80
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    typical: float = 1.0
    repetition_penalty: float = 1.1
    repetition_range: int = 0
    dry_multiplier: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    smoothing_factor: float = 0.0
    stop: list[str] = Field(default=[], max_length=16)


class ChatTurn(_Strict):
    role: Literal["system", "user", "assistant"]
    content: str


class PageText(_Strict):
    """A story with its memory and note, or a chat in their place."""

    story: str = ""
    memory: str = ""
    note: str = ""
    chat: Items[ChatTurn] | None = None


class Write(_Strict):
    """Continue a text, once with each of the soft prompts ("": with none), all from the same seed.

    weights: for mixtures among them, by name, in place of their own. strength, hold: for all, in place of their own; held, those
    that have no hold of their own get the one that is offered.
    """

    do: Literal["write"] = "write"
    id: int
    text: PageText
    soft_prompts: list[str] = Field(min_length=1, max_length=MOST_COLUMNS)
    weights: Annotated[dict[str, Items[float]], few_entries(256, "weights")] = Field(default_factory=dict)
    strength: Annotated[float, Field(strict=True, ge=LEAST_STRENGTH, le=MOST_STRENGTH)] | None = None
    hold: StrictBool | None = None
    settings: SamplingFields = SamplingFields()
    seed: Annotated[int, Field(ge=0, lt=2**53)] | None = None


class Measure(_Strict):
    """How much of the context a text takes."""

    do: Literal["measure"] = "measure"
    id: int
    text: PageText
    soft_prompt: str = ""
    max_tokens: Annotated[int, Field(ge=1)] = 80


class Stop(_Strict):
    """End the request with this id."""

    do: Literal["stop"] = "stop"
    id: int


TabMessage = Annotated[Write | Measure | Stop, Field(discriminator="do")]


@dataclass(frozen=True)
class PreparedWrite:
    """requests: one for each soft prompt, all with `seed`. dropped: of the text for the first one."""

    requests: tuple[Request, ...]
    dropped: int
    seed: int


@dataclass(frozen=True)
class FittedText:
    """ids: the text that fits, without BOS. dropped: characters of the story, or messages of the chat, that do not."""

    ids: tuple[int, ...]
    dropped: int


def prepare(serving: Serving, message: Write) -> PreparedWrite:
    """Reads files and tokenises: not for the event loop. Raises SordinoError."""
    settings = message.settings
    if settings.max_tokens > serving.limits.max_tokens:
        raise ConfigError(
            "more new tokens than this server allows in one request",
            where="max_tokens",
            expected=f"at most {serving.limits.max_tokens}",
            got=settings.max_tokens,
        )
    prompts = [
        _attended(_weighted(serving.prompts.prompt(name), message.weights.get(name)), message) if name else None
        for name in message.soft_prompts
    ]
    seed = secrets.randbelow(2**32) if message.seed is None else message.seed
    sampling = Sampling(**{**settings.model_dump(), "stop": tuple(settings.stop)})
    fitted = [_fit(serving, message.text, prompt, settings.max_tokens) for prompt in prompts]
    for name in filter(None, message.soft_prompts):
        serving.metrics.count_prompt(name)
    requests = tuple(
        request_for(serving.base, text.ids, prompt, sampling, seed)
        for prompt, text in zip(prompts, fitted, strict=True)
    )
    return PreparedWrite(requests, fitted[0].dropped, seed)


def measured(serving: Serving, message: Measure) -> dict[str, int]:
    """Positions. used: text and BOS. soft: soft prompt. room: new tokens. total: the context. dropped: as in FittedText."""
    prompt = serving.prompts.prompt(message.soft_prompt) if message.soft_prompt else None
    fitted = _fit(serving, message.text, prompt, message.max_tokens)
    return {
        "used": len(serving.base.bos_ids) + len(fitted.ids),
        "soft": prompt.n_tokens if prompt else 0,
        "room": message.max_tokens,
        "total": serving.context_length,
        "dropped": fitted.dropped,
    }


def _weighted(prompt: StoredPrompt, weights: list[float] | None) -> StoredPrompt:
    if weights is None:
        return prompt
    if not isinstance(prompt, Mixture):
        raise ConfigError("these are for mixtures, and this soft prompt is none", where="weights")
    return prompt.with_weights(weights)


def _attended(prompt: StoredPrompt, message: Write) -> StoredPrompt:
    holds: list[Hold] | None = None
    if message.hold is not None:
        own = [part.metadata.attention.hold for part in components_of(prompt)]
        holds = [hold or OFFERED_HOLD if message.hold else "off" for hold in own]
    return with_attention(prompt, holds if holds is None or isinstance(prompt, Mixture) else holds[0], message.strength)


def _fit(serving: Serving, text: PageText, prompt: StoredPrompt | None, max_tokens: int) -> FittedText:
    model = serving.base
    room = room_for_text(model, serving.context_length, leading_positions(model, prompt), max_tokens)
    if room < 1:
        raise ConfigError("the context has no room for the text", expected="fewer new tokens", got=max_tokens)
    if text.chat is not None:
        return fit_chat(model, [turn.model_dump() for turn in text.chat], room=room)
    return fit_story(model, text.story, memory=text.memory, note=text.note, room=room)


def fit_story(model: DescribedModel, story: str, *, memory: str = "", note: str = "", room: int) -> FittedText:
    """As much of the story's end as fits into `room` tokens with memory and note.

    Raises ConfigError where memory and note leave no room for the story.
    """
    around = len(model.encode(_composed("", memory, note)))
    if around >= room:
        raise ConfigError(
            "memory and author's note leave no room for the story",
            expected=f"fewer than {room} tokens",
            got=around,
            do="shorten them, or ask for fewer new tokens",
        )
    starts = model.token_starts(story)
    used = min(len(starts), room - around)
    while True:
        dropped = 0 if used == len(starts) else _next_word(story, starts[-used] if used else len(story))
        ids = model.encode(_composed(story[dropped:], memory, note))
        # Where the parts meet, tokens may merge or split: the count is not the sum.
        if len(ids) <= room or used == 0:
            return FittedText(tuple(ids[-room:]), dropped)
        used = max(0, used - (len(ids) - room))


def fit_chat(model: DescribedModel, messages: Sequence[Mapping[str, str]], *, room: int) -> FittedText:
    """The system message and as many of the latest others as fit into `room` tokens, in the model's chat template.

    Raises ModelError where the model has no template, ConfigError where not even the last message fits.
    """
    system = [one for one in messages[:1] if one.get("role") == "system"]
    others = messages[len(system) :]
    # Templates want a user's turn first.
    starts = [at for at in range(max(1, len(others))) if at == 0 or others[at].get("role") == "user"]

    def ids_of(dropped: int) -> tuple[int, ...]:
        return chat_ids(model, [*system, *others[dropped:]])

    # By bisection: rendering a long chat once for each dropped message takes minutes.
    place = bisect_left(starts, True, key=lambda dropped: len(ids_of(dropped)) <= room)
    if place < len(starts):
        return FittedText(ids_of(starts[place]), starts[place])
    raise ConfigError(
        "the last message does not fit the model's context",
        expected=f"at most {room} tokens",
        do="shorten it or the character, or ask for fewer new tokens",
    )


def _composed(story: str, memory: str, note: str) -> str:
    if note:
        lines = story.split("\n")
        at = max(0, len(lines) - NOTE_DEPTH)
        story = "\n".join([*lines[:at], f"[{note}]", *lines[at:]])
    return f"{memory}\n{story}" if memory else story


def _next_word(text: str, place: int) -> int:
    """The start of the next whole word, within 40 characters; else `place` itself."""
    if place == 0 or text[place - 1].isspace():
        return place
    for at in range(place, min(len(text), place + 40)):
        if text[at].isspace():
            return at
    return place
