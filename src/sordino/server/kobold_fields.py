"""The fields of KoboldAI's requests, and what they mean here.

Unknown fields are ignored, as KoboldAI does and its clients count on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictStr, field_validator

from sordino.engine.config import Sampling
from sordino.server.foreign import ALIASES, order_of
from sordino.server.openai_fields import HoldField, Items, LogitBias, StrengthField, logit_bias
from sordino.server.sampler_fields import ONE_TOKEN, Number, SamplerFields

# Of KoboldCpp's last log probabilities.
_LIKELIEST = 5

_SPECIAL = re.compile(r"[#/@%{}+=~|^<>]")
_SENTENCE_ENDS = ".!?\"'”’*)…"


class KoboldSettings(BaseModel):
    """What /config/NAME gets and sets and a request may override, with KoboldAI's own defaults."""

    model_config = ConfigDict(extra="ignore")

    max_length: Annotated[int, Field(ge=1)] = 80
    max_context_length: Annotated[int, Field(ge=1)] = 2048
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    top_p: Annotated[float, Field(ge=0, le=1)] = 0.9
    top_k: Annotated[int, Field(ge=0)] = 0
    top_a: Annotated[float, Field(ge=0, le=1)] = 0.0
    tfs: Annotated[float, Field(ge=0, le=1)] = 1.0
    typical: Annotated[float, Field(ge=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    rep_pen: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.1
    rep_pen_range: Annotated[int, Field(ge=0)] = 1024
    rep_pen_slope: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.7
    sampler_order: Items[int] = [6, 0, 1, 2, 3, 4, 5]
    singleline: bool = False
    frmttriminc: bool = False
    frmtrmblln: bool = False
    frmtrmspch: bool = False

    @field_validator("sampler_order")
    @classmethod
    def _is_order(cls, order: list[int]) -> list[int]:
        return list(order_of(order, None, temperature_last=False))


class GenerateRequest(KoboldSettings, SamplerFields):
    """memory: stands in front of the prompt, and stays where a long prompt loses its beginning. replace_instruct_placeholders:
    KoboldAI Lite's tags in memory, prompt and stop sequences become the chat template's strings. n: continuations. soft_prompt: a
    file of the library, blank for none, absent for the server's default. hold, strength: as in OpenAI's requests; KoboldAI has no
    such fields.
    """

    prompt: StrictStr
    memory: StrictStr = ""
    replace_instruct_placeholders: bool = False
    logit_bias: LogitBias = None
    presence_penalty: Number = 0.0
    frequency_penalty: Number = 0.0
    logprobs: bool = False
    n: Annotated[int, Field(ge=1, le=5)] = 1
    sampler_seed: Annotated[int, Field(ge=0, le=2**64 - 1)] | None = None
    stop_sequence: Items[StrictStr] | None = None
    soft_prompt: StrictStr | None = None
    hold: HoldField = None
    strength: StrengthField = None
    genkey: StrictStr = ""


def sampling_of(fields: GenerateRequest, stop: Sequence[str], samplers: Mapping[str, Any]) -> Sampling:
    """samplers: as from `sampler_settings`. Raises ConfigError, Refused."""
    return Sampling(
        max_tokens=fields.max_length,
        temperature=fields.temperature,
        top_k=fields.top_k,
        top_p=fields.top_p or ONE_TOKEN,
        min_p=fields.min_p,
        typical=fields.typical or ONE_TOKEN,
        top_a=fields.top_a,
        tfs=fields.tfs or ONE_TOKEN,
        repetition_penalty=fields.rep_pen,
        repetition_range=fields.rep_pen_range,
        repetition_slope=fields.rep_pen_slope,
        order=tuple(fields.sampler_order),
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        logit_bias=logit_bias(fields.logit_bias),
        logprobs=_LIKELIEST if fields.logprobs else None,
        stop=tuple(stop),
        **samplers,
    )


def formatted(text: str, fields: KoboldSettings) -> str:
    """The finished text after KoboldAI's output formatting."""
    if fields.frmttriminc:
        text = _without_incomplete_sentence(text)
    if fields.frmtrmblln:
        text = re.sub(r"\n{2,}", "\n", text)
    if fields.frmtrmspch:
        text = _SPECIAL.sub("", text)
    return text


def _without_incomplete_sentence(text: str) -> str:
    """Up to the end of the last complete sentence; all of it where there is none."""
    end = max((text.rfind(mark) for mark in _SENTENCE_ENDS), default=-1)
    return text if end < 0 else text[: end + 1]


def with_defaults(settings: KoboldSettings, body: dict[str, Any]) -> dict[str, Any]:
    """A request's fields, and the server's settings for those that are absent or null."""
    # KoboldCpp's names of sampling that other programs call otherwise.
    own = {foreign: name for foreign, name in ALIASES.items() if name in SamplerFields.model_fields}
    return settings.model_dump() | {own.get(key, key): value for key, value in body.items() if value is not None}
