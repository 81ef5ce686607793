"""The fields of OpenAI's requests, and what they mean here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr
from pydantic_core import PydanticCustomError

from sordino.engine.config import MOST_BIASES
from sordino.engine.grammar import Grammar
from sordino.engine.sampling import Sampling
from sordino.models.description import DescribedModel
from sordino.prompts.mixture import MAX_COMPONENTS, Mixture, StoredPrompt, with_attention
from sordino.server.bodies import StrictBody, few_entries
from sordino.server.errors import Refused, refusing
from sordino.server.foreign import check_fields, order_of, translate
from sordino.server.sampler_fields import NAMES, ONE_TOKEN, Number, SamplerFields, sampler_settings
from sordino.server.serving import Serving

# What the engine's `Sampling` takes by the same name; `typical` is `typical_p` here.
_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "typical", "top_a", "tfs"),
    *("repetition_penalty", "repetition_range", "presence_penalty", "frequency_penalty"),
)


Item = TypeVar("Item")
# The first wrong item ends the validation: an error for each of a million items would block the server for minutes.
Items = Annotated[list[Item], Field(fail_fast=True)]


def _for_components(expected: str, is_good: Callable[[Any], bool]) -> BeforeValidator:
    """A value, or a list with one for each component of a mixture. One error for all that it may be."""

    def checked(value: Any) -> Any:
        items = value if isinstance(value, list) else [] if value is None else [value]
        if len(items) > MAX_COMPONENTS or not all(map(is_good, items)):
            raise PydanticCustomError("for_components", f"{expected} was expected, or a list of one for each component")
        return value

    return BeforeValidator(checked)


HoldField = Annotated[
    StrictInt | Literal["off"] | list[StrictInt | Literal["off"]] | None,
    _for_components('a whole number of tokens or "off"', lambda value: type(value) is int or value == "off"),
]
StrengthField = Annotated[
    Number | list[Number] | None,
    _for_components("a number", lambda value: type(value) in (int, float) and abs(value) <= 1e9),
]


LogitBias = Annotated[dict[str, Number] | None, few_entries(MOST_BIASES, "biases")]


class StreamOptions(StrictBody):
    """continuous_usage_stats: with include_usage, every chunk has the counts so far, as in vLLM. include_obfuscation: padding of
    random length, which is not implemented.
    """

    include_usage: StrictBool | None = None
    continuous_usage_stats: StrictBool | None = None
    include_obfuscation: Literal[False] | None = None


class SchemaFormat(StrictBody):
    """name, description, strict are for OpenAI's models: the schema is kept to in any case."""

    model_config = ConfigDict(populate_by_name=True)
    json_schema: Annotated[dict[str, Any] | StrictBool, Field(alias="schema")]
    name: StrictStr | None = None
    description: StrictStr | None = None
    strict: StrictBool | None = None


class ResponseFormat(StrictBody):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None


class Options(SamplerFields):
    """The fields of both routes. Absent and null are the same. Without a model (absent or blank), the served one writes, with the
    server's default soft prompt.

    For a mixture: mixture_weights replace its own weights, one number for each component; with token_mixture the weights stay
    fixed while it writes. hold ("off" or 0: none), strength: in place of the soft prompt's own; for a mixture one value for all
    components, or one for each.
    """

    model_config = ConfigDict(extra="allow")

    model: StrictStr | None = None
    soft_prompt: StrictStr | None = None
    mixture_weights: Items[Number] | None = None
    token_mixture: StrictBool | None = None
    hold: HoldField = None
    strength: StrengthField = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: StrictInt | None = None
    min_p: Number | None = None
    typical_p: Number | None = None
    top_a: Number | None = None
    tfs: Number | None = None
    repetition_penalty: Number | None = None
    repetition_range: StrictInt | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    dynatemp_min: Number | None = None
    dynatemp_max: Number | None = None
    do_sample: StrictBool | None = None
    temperature_last: StrictBool | None = None
    sampler_order: Annotated[list[StrictInt], Field(max_length=7)] | None = None
    sampler_priority: Annotated[list[StrictStr], Field(max_length=64)] | None = None
    logit_bias: LogitBias = None
    stop: StrictStr | Items[StrictStr] | None = None
    seed: StrictInt | None = None
    n: StrictInt | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None


class CompletionRequest(Options):
    """prompt: a text, several, or the same as token ids. echo: the text too, with logprobs its own; max_tokens may be 0 then."""

    prompt: StrictStr | Items[StrictStr] | Items[StrictInt] | Items[Items[StrictInt]]
    max_tokens: StrictInt | None = None
    logprobs: StrictInt | None = None
    echo: StrictBool | None = None


def refuse_unsupported(options: Options) -> None:
    """Take over what other programs call otherwise; raise Refused for what is unknown, or not implemented."""
    if options.stream_options is not None and not options.stream:
        raise Refused(400, "stream_options is for stream: true", field="stream_options")
    translate(options)
    check_fields(options.model_extra or {})


def as_asked(options: Options, prompt: StoredPrompt | None) -> StoredPrompt | None:
    """The soft prompt with the hold and strength that the request gives, a mixture with its weights.

    Raises Refused for weights of what is no mixture.
    """
    for field in ("mixture_weights", "token_mixture"):
        if getattr(options, field) not in (None, False) and not isinstance(prompt, Mixture):
            raise Refused(400, f"{field} is for mixtures, and this soft prompt is none", field=field)
    if options.mixture_weights is not None and isinstance(prompt, Mixture):
        with refusing("mixture_weights"):
            prompt = prompt.with_weights(options.mixture_weights)
    # The error names its field.
    with refusing():
        return with_attention(prompt, options.hold, options.strength)


def grammar_of(serving: Serving, wanted: ResponseFormat | None) -> Grammar | None:
    """What the answer has to match. Raises Refused."""
    if wanted is None or wanted.type == "text":
        return None
    given = wanted.json_schema
    if (given is None) != (wanted.type == "json_object"):
        needs = "needs json_schema" if given is None else "takes no json_schema"
        raise Refused(400, f"response_format: the type {wanted.type} {needs}", field="response_format")
    with refusing("response_format"):
        return serving.grammars.of_schema({"type": "object"} if given is None else given.json_schema)


def sampling_of(
    serving: Serving, options: Options, *, max_tokens: int, logprobs: int | None, names: Mapping[str, str] | None = None
) -> Sampling:
    """names: what the route calls `max_tokens` and `logprobs`, where that differs. Raises Refused."""
    names = {"typical": "typical_p", **NAMES, **(names or {})}
    if max_tokens > serving.limits.max_tokens:
        raise Refused(
            400,
            f"at most {serving.limits.max_tokens} new tokens in one request",
            field=names.get("max_tokens", "max_tokens"),
        )
    stops = (options.stop,) if isinstance(options.stop, str) else tuple(options.stop or ())
    given = {field: value for field in _SAMPLING if (value := getattr(options, names.get(field, field))) is not None}
    # vLLM's -1, like 0, means all.
    given |= {field: 0 for field in ("top_k", "repetition_range") if given.get(field) == -1}
    given |= {field: ONE_TOKEN for field in ("top_p", "typical", "tfs") if given.get(field) == 0}
    if options.dynatemp_min is not None and options.dynatemp_max is not None:
        low, high = options.dynatemp_min, options.dynatemp_max
        given |= {"temperature": (low + high) / 2, "dynatemp_range": (high - low) / 2}
    if options.do_sample is False:
        given["temperature"] = 0.0
    given = sampler_settings(serving.base, options) | given
    try:
        last = bool(options.temperature_last)
        given["order"] = order_of(options.sampler_order, options.sampler_priority, temperature_last=last)
    except ValueError as error:
        raise Refused(400, f"sampler_order: {error}", field="sampler_order") from error
    with refusing(names=names):
        return Sampling(
            max_tokens=max_tokens,
            stop=stops,
            logit_bias=logit_bias(options.logit_bias),
            logprobs=logprobs,
            # OpenAI's defaults, not those of Sampling.
            **{"temperature": 1.0, "top_p": 1.0, **given},
        )


def logit_bias(given: Mapping[str, float] | None) -> tuple[tuple[int, float], ...]:
    """The engine's setting of that name. Raises Refused."""
    for token, value in (given or {}).items():
        if not token.isdecimal() or len(token) > 9 or token != str(int(token)):
            raise Refused(400, f"logit_bias: a token id was expected, got {token[:20]!r}", field="logit_bias")
        if not -100 <= value <= 100:
            raise Refused(400, f"logit_bias: -100 to 100 was expected, got {value}", field="logit_bias")
    return tuple((int(token), value) for token, value in (given or {}).items())


def several(prompt: str | list[str] | list[int] | list[list[int]]) -> Sequence[Any]:
    """The texts of the field `prompt`, as they were sent. Raises Refused."""
    found: Sequence[Any] = [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else prompt
    if not found:
        raise Refused(400, "a text was expected, got none", field="prompt")
    return found


def texts_of(base: DescribedModel, given: Sequence[Any]) -> list[tuple[int, ...]]:
    """The token ids of each text, without BOS: where it belongs depends on the soft prompt. Raises Refused."""
    texts = []
    for one in given:
        if not isinstance(one, str) and any(not 0 <= i < base.vocab_size for i in one):
            raise Refused(400, f"token ids are 0 to {base.vocab_size - 1} here", field="prompt")
        with refusing("prompt"):
            texts.append(tuple(base.encode(one) if isinstance(one, str) else base.without_bos(one)))
    return texts
