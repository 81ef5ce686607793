"""What a tab asks for: fields, and how they become requests of the engine."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from sordino.engine.requests import Request
from sordino.engine.sampling import Sampling
from sordino.errors import ConfigError
from sordino.prompts.mixture import Mixture, StoredPrompt
from sordino.server.generation import Job, requests_of, width_of
from sordino.server.page.story import Fitted, fit_chat, fit_story
from sordino.server.serving import Serving

# Columns of a comparison.
MOST_COLUMNS = 8


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Settings(_Strict):
    """How tokens are drawn: see sampling.Sampling."""

    max_tokens: Annotated[int, Field(ge=1)] = 80
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    typical: float = 1.0
    repetition_penalty: float = 1.1
    repetition_range: int = 0
    stop: list[str] = Field(default=[], max_length=16)


class Message(_Strict):
    """A turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class Text(_Strict):
    """A story, or where there is a chat, that. Memory and note belong to stories."""

    story: str = ""
    memory: str = ""
    note: str = ""
    chat: list[Message] | None = None


class Write(_Strict):
    """Continue a text, once behind each of the soft prompts ("": behind none), all with the same seed.

    weights: of mixtures among them, by name, in place of their own.
    """

    do: Literal["write"] = "write"
    id: int
    text: Text
    soft_prompts: list[str] = Field(min_length=1, max_length=MOST_COLUMNS)
    weights: dict[str, list[float]] = {}
    settings: Settings = Settings()
    seed: Annotated[int, Field(ge=0, lt=2**53)] | None = None


class Measure(_Strict):
    """How much of the context a text takes."""

    do: Literal["measure"] = "measure"
    id: int
    text: Text
    soft_prompt: str = ""
    max_tokens: Annotated[int, Field(ge=1)] = 80


class Stop(_Strict):
    """End what was asked with this id."""

    do: Literal["stop"] = "stop"
    id: int


Asked = Annotated[Write | Measure | Stop, Field(discriminator="do")]


@dataclass(frozen=True)
class Prepared:
    """requests: one a soft prompt. dropped: of the text, behind the first one. seed: what they drew."""

    requests: tuple[Request, ...]
    dropped: int
    seed: int


def prepare(serving: Serving, asked: Write) -> Prepared:
    """Reads files and tokenises: not for the event loop. Raises SordinoError."""
    if asked.settings.max_tokens > serving.limits.max_tokens:
        raise ConfigError(
            "more new tokens than this server writes at once",
            where="max_tokens",
            expected=f"at most {serving.limits.max_tokens}",
            got=asked.settings.max_tokens,
        )
    prompts = [
        _weighed(serving.voices.prompt(name), asked.weights.get(name)) if name else None for name in asked.soft_prompts
    ]
    seed = secrets.randbelow(2**32) if asked.seed is None else asked.seed
    said = asked.settings.model_dump()
    sampling = Sampling(**{**said, "stop": tuple(said["stop"])})
    fitted = [_fitted(serving, asked.text, prompt, asked.settings.max_tokens) for prompt in prompts]
    for name in filter(None, asked.soft_prompts):
        serving.metrics.prompts.labels(name).inc()
    requests = [
        request
        for prompt, one in zip(prompts, fitted, strict=True)
        for request in requests_of(serving.base, Job(one.ids, prompt, sampling, seed))
    ]
    return Prepared(tuple(requests), fitted[0].dropped, seed)


def measured(serving: Serving, asked: Measure) -> dict[str, int]:
    """used: positions of text and BOS. soft: of the soft prompt. total: the context. room: for the answer. dropped: as Prepared."""
    prompt = serving.voices.prompt(asked.soft_prompt) if asked.soft_prompt else None
    fitted = _fitted(serving, asked.text, prompt, asked.max_tokens)
    return {
        "used": len(serving.base.bos_ids) + len(fitted.ids),
        "soft": prompt.n_tokens if prompt else 0,
        "room": asked.max_tokens,
        "total": serving.context_length,
        "dropped": fitted.dropped,
    }


def _fitted(serving: Serving, text: Text, prompt: StoredPrompt | None, max_tokens: int) -> Fitted:
    model = serving.base
    room = serving.context_length - width_of(model, prompt) - max_tokens
    if room < 1:
        raise ConfigError("the context has no room for the text", expected="fewer new tokens", got=max_tokens)
    if text.chat is not None:
        return fit_chat(model, _plain(text.chat), room=room)
    return fit_story(model, text.story, memory=text.memory, note=text.note, room=room)


def _weighed(prompt: StoredPrompt, weights: list[float] | None) -> StoredPrompt:
    if weights is None:
        return prompt
    if not isinstance(prompt, Mixture):
        raise ConfigError("weights are for mixtures, and this soft prompt is none", where="weights")
    return prompt.with_weights(weights)


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [message.model_dump() for message in messages]
