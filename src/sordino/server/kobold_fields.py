"""The fields of KoboldAI's requests, and what they mean here.

Unknown fields are ignored, as KoboldAI does and its clients count on; those in `IGNORED` are known and mean nothing here.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictStr, field_validator

from sordino.engine.config import REPETITION, Sampling
from sordino.server.openai_fields import HoldField, Items, StrengthField

IGNORED: dict[str, str] = {
    "use_story": "this server keeps no story",
    "use_memory": "this server keeps no memory",
    "use_authors_note": "this server keeps no author's note",
    "use_world_info": "this server keeps no world info",
    "use_userscripts": "this server runs no user scripts",
    "frmtadsnsp": "a space after the story's last action, and this server keeps no story",
    "quiet": "texts are never printed here",
    "sampler_full_determinism": "a seed gives the same text here in any case",
    "trim_stop": "stop sequences are never part of the text here",
}
# Fields for whole answers: what has been sent cannot be trimmed.
IGNORED_IN_STREAMS: dict[str, str] = {
    "n": "one continuation is streamed",
    "frmttriminc": "what was sent cannot be taken back",
    "frmtrmblln": "what was sent cannot be taken back",
    "frmtrmspch": "what was sent cannot be taken back",
}
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
        # Older clients know six steps: the repetition penalty comes first then.
        full = [REPETITION, *order] if len(order) == 6 else order
        if sorted(full) != list(range(7)):
            raise ValueError("Must be a permutation of the first 6 or 7 whole numbers.")
        return full


class GenerateRequest(KoboldSettings):
    """n: continuations. soft_prompt: a file of the library, blank for none, absent for the server's default. hold, strength: as in
    OpenAI's requests; KoboldAI has no such fields.
    """

    prompt: StrictStr
    n: Annotated[int, Field(ge=1, le=5)] = 1
    sampler_seed: Annotated[int, Field(ge=0, le=2**64 - 1)] | None = None
    stop_sequence: Items[StrictStr] | None = None
    soft_prompt: StrictStr | None = None
    hold: HoldField = None
    strength: StrengthField = None
    genkey: StrictStr = ""


def sampling_of(fields: GenerateRequest, stop: tuple[str, ...]) -> Sampling:
    """Raises ConfigError."""
    # In KoboldAI 0 keeps one token, as does a value just above 0.
    least = 1e-9
    return Sampling(
        max_tokens=fields.max_length,
        temperature=fields.temperature,
        top_k=fields.top_k,
        top_p=max(fields.top_p, least),
        min_p=fields.min_p,
        typical=max(fields.typical, least),
        top_a=fields.top_a,
        tfs=max(fields.tfs, least),
        repetition_penalty=fields.rep_pen,
        repetition_range=fields.rep_pen_range,
        repetition_slope=fields.rep_pen_slope,
        order=tuple(fields.sampler_order),
        stop=stop,
    )


def stops_of(fields: GenerateRequest) -> tuple[str, ...]:
    """The request's stop sequences, and the end of the line where it asks for a single line."""
    return (*(stop for stop in fields.stop_sequence or () if stop), *(("\n",) if fields.singleline else ()))


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
    return settings.model_dump() | {key: value for key, value in body.items() if value is not None}
