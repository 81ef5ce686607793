"""The fields of OpenAI's requests, and what they mean here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from sordino.engine.sampling import Sampling
from sordino.errors import SordinoError
from sordino.models.description import DescribedModel
from sordino.prompts.mixture import Mixture, StoredPrompt
from sordino.server.errors import Refused, refused
from sordino.server.serving import Serving

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
# Beside the value that is absent: what else changes nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "user": (),
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "safety_identifier": (),
    "prompt_cache_key": (),
}
# Names of a person or of a cache: any text will do, as they ask for nothing.
LABELS = frozenset({"user", "safety_identifier", "prompt_cache_key"})


class StreamOptions(BaseModel):
    """include_obfuscation: texts of random length around the real one, which are not made here."""

    model_config = ConfigDict(extra="forbid")
    include_usage: StrictBool | None = None
    include_obfuscation: Literal[False] | None = None


class Options(BaseModel):
    """What both routes take. Absent and null are the same.

    Where the soft prompt is a mixture, mixture_weights take the place of its own, a number a component; with token_mixture the
    weights stay as they are while it writes.
    """

    model_config = ConfigDict(extra="allow")

    model: StrictStr
    soft_prompt: StrictStr | None = None
    mixture_weights: list[Number] | None = None
    token_mixture: StrictBool | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: StrictInt | None = None
    min_p: Number | None = None
    typical_p: Number | None = None
    top_a: Number | None = None
    tfs: Number | None = None
    repetition_penalty: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    stop: StrictStr | list[StrictStr] | None = None
    seed: StrictInt | None = None
    n: StrictInt | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None


class CompletionRequest(Options):
    """prompt: a text, several, or the same as token ids."""

    prompt: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]
    max_tokens: StrictInt | None = None
    logprobs: StrictInt | None = None


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: StrictStr


class Message(BaseModel):
    """name is read and not used: chat templates have no place for it, and SillyTavern sends it with example dialogues."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | list[TextPart]
    name: StrictStr | None = None


class ChatRequest(Options):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: StrictInt | None = None
    max_completion_tokens: StrictInt | None = None
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = None


def refuse_foreign(asked: Options) -> None:
    """Raises Refused for fields that nobody knows, and for those that would change the answer and are not implemented."""
    if asked.stream_options is not None and not asked.stream:
        raise Refused(400, "stream_options is for stream: true", field="stream_options")
    for field, value in (asked.model_extra or {}).items():
        if field not in NEUTRAL:
            raise Refused(400, f"unknown field: {field}", field=field, code="unknown_parameter")
        if value is None or _is_neutral(field, value) or (field in LABELS and isinstance(value, str)):
            continue
        raise Refused(
            400,
            f"{field} is not implemented here, and this value would change the answer",
            field=field,
            code="unsupported_parameter",
        )


def _is_neutral(field: str, value: Any) -> bool:
    """Whether it is one of the values that change nothing; true is no number here, as it is in Python."""
    return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in NEUTRAL[field])


def weighed(asked: Options, prompt: StoredPrompt | None) -> StoredPrompt | None:
    """The soft prompt with the weights that a request gives a mixture. Raises Refused where it is none."""
    for field in ("mixture_weights", "token_mixture"):
        if getattr(asked, field) not in (None, False) and not isinstance(prompt, Mixture):
            raise Refused(400, f"{field} is for mixtures, and this soft prompt is none", field=field)
    if asked.mixture_weights is None or not isinstance(prompt, Mixture):
        return prompt
    try:
        return prompt.with_weights(asked.mixture_weights)
    except SordinoError as error:
        raise refused(error, field="mixture_weights") from error


def sampling_of(
    serving: Serving, asked: Options, *, max_tokens: int, logprobs: int | None, names: Mapping[str, str] | None = None
) -> Sampling:
    """names: what the route calls `max_tokens` and `logprobs`, where it calls them otherwise. Raises Refused."""
    names = {"typical": "typical_p", **(names or {})}
    if max_tokens > serving.limits.max_tokens:
        raise Refused(
            400,
            f"at most {serving.limits.max_tokens} new tokens in one request",
            field=names.get("max_tokens", "max_tokens"),
        )
    given: dict[str, Any] = {
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "top_p": 1.0 if asked.top_p is None else asked.top_p,
        # vLLM's -1, too, means all.
        "top_k": None if asked.top_k is None else max(0, asked.top_k) if asked.top_k >= -1 else asked.top_k,
        "min_p": asked.min_p,
        "typical": asked.typical_p,
        "top_a": asked.top_a,
        "tfs": asked.tfs,
        "repetition_penalty": asked.repetition_penalty,
        "presence_penalty": asked.presence_penalty,
        "frequency_penalty": asked.frequency_penalty,
        "logprobs": logprobs,
    }
    stops = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    if len(stops) > 16:
        raise Refused(400, "at most 16 stop strings", field="stop")
    try:
        return Sampling(
            max_tokens=max_tokens,
            stop=stops,
            logit_bias=_bias(asked.logit_bias),
            **{key: value for key, value in given.items() if value is not None},
        )
    except SordinoError as error:
        field = error.where.removeprefix("--").replace("-", "_")
        raise refused(error, field=names.get(field, field)) from error


def _bias(said: Mapping[str, float] | None) -> tuple[tuple[int, float], ...]:
    bias = []
    for word, value in (said or {}).items():
        if not word.isdecimal() or len(word) > 9 or word != str(int(word)):
            raise Refused(400, f"logit_bias: a token id was expected, got {word[:20]!r}", field="logit_bias")
        if not -100 <= value <= 100:
            raise Refused(400, f"logit_bias: -100 to 100 was expected, got {value}", field="logit_bias")
        bias.append((int(word), value))
    return tuple(bias)


def texts_of(base: DescribedModel, said: str | list[str] | list[int] | list[list[int]]) -> list[tuple[int, ...]]:
    several: Sequence[Any] = [said] if isinstance(said, str) or (said and isinstance(said[0], int)) else said
    if not several:
        raise Refused(400, "a text was expected, got none", field="prompt")
    found = []
    for one in several:
        if isinstance(one, str):
            try:
                found.append(tuple(base.encode(one)))
            except SordinoError as error:
                raise refused(error, field="prompt") from error
        else:
            if any(not 0 <= i < base.vocab_size for i in one):
                raise Refused(400, f"token ids are 0 to {base.vocab_size - 1} here", field="prompt")
            found.append(tuple(one))
    return found


def plain(message: Message) -> dict[str, str]:
    content = message.content if isinstance(message.content, str) else "".join(part.text for part in message.content)
    return {"role": "system" if message.role == "developer" else message.role, "content": content}
