"""The fields of KoboldAI's requests, and what they mean here.

Fields that nobody knows are ignored, as KoboldAI does and its clients count on; those in `IGNORED` are known and mean nothing here.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictStr, field_validator

from sordino.engine.config import REPETITION, Sampling

IGNORED: dict[str, str] = {
    "use_story": "this server keeps no story",
    "use_memory": "this server keeps no memory",
    "use_authors_note": "this server keeps no author's note",
    "use_world_info": "this server keeps no world info",
    "use_userscripts": "this server runs no user scripts",
    "frmtadsnsp": "a space behind the story's last action, and this server keeps no story",
    "quiet": "texts are never printed here",
    "sampler_full_determinism": "a seed gives the same text here in any case",
    "trim_stop": "stop sequences are never part of the text here",
}
# These are for whole answers: what has been sent cannot be trimmed.
IGNORED_IN_STREAMS: dict[str, str] = {
    "n": "one continuation is streamed",
    "frmttriminc": "what was sent cannot be taken back",
    "frmtrmblln": "what was sent cannot be taken back",
    "frmtrmspch": "what was sent cannot be taken back",
}
_SPECIAL = re.compile(r"[#/@%{}+=~|^<>]")
_SENTENCE_ENDS = ".!?\"'”’*)…"


class Settings(BaseModel):
    """What /config/NAME gets and sets, and a request may say for itself, with KoboldAI's own defaults."""

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
    sampler_order: list[int] = [6, 0, 1, 2, 3, 4, 5]
    singleline: bool = False
    frmttriminc: bool = False
    frmtrmblln: bool = False
    frmtrmspch: bool = False

    @field_validator("sampler_order")
    @classmethod
    def _is_order(cls, said: list[int]) -> list[int]:
        # Older clients know six steps: the repetition penalty comes first then.
        full = [REPETITION, *said] if len(said) == 6 else said
        if sorted(full) != list(range(7)):
            raise ValueError("Must be a permutation of the first 6 or 7 whole numbers.")
        return full


class Generate(Settings):
    """A request to write. n: continuations. soft_prompt: a file of the library, blank for none, absent for the server's default."""

    prompt: StrictStr
    n: Annotated[int, Field(ge=1, le=5)] = 1
    sampler_seed: Annotated[int, Field(ge=0, le=2**64 - 1)] | None = None
    stop_sequence: list[StrictStr] | None = None
    soft_prompt: StrictStr | None = None
    genkey: StrictStr = ""


def sampling_of(asked: Generate, stop: tuple[str, ...]) -> Sampling:
    """Raises ConfigError."""
    # KoboldAI takes 0 for "keep one word", which is what next to nothing keeps.
    least = 1e-9
    return Sampling(
        max_tokens=asked.max_length,
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=max(asked.top_p, least),
        min_p=asked.min_p,
        typical=max(asked.typical, least),
        top_a=asked.top_a,
        tfs=max(asked.tfs, least),
        repetition_penalty=asked.rep_pen,
        repetition_range=asked.rep_pen_range,
        repetition_slope=asked.rep_pen_slope,
        order=tuple(asked.sampler_order),
        stop=stop,
    )


def stops_of(asked: Generate) -> tuple[str, ...]:
    """Where the text ends: the request's own, and the line's end where one line was asked for."""
    return (*(word for word in asked.stop_sequence or () if word), *(("\n",) if asked.singleline else ()))


def formatted(text: str, asked: Settings) -> str:
    """The finished text as KoboldAI's output formatting leaves it."""
    if asked.frmttriminc:
        text = _without_half_a_sentence(text)
    if asked.frmtrmblln:
        text = re.sub(r"\n{2,}", "\n", text)
    if asked.frmtrmspch:
        text = _SPECIAL.sub("", text)
    return text


def _without_half_a_sentence(text: str) -> str:
    """Up to the last sentence that ends; all of it where none does."""
    end = max((text.rfind(mark) for mark in _SENTENCE_ENDS), default=-1)
    return text if end < 0 else text[: end + 1]


def defaults_with(settings: Settings, said: dict[str, Any]) -> dict[str, Any]:
    """What a request says over what the server's settings say; null is as absent."""
    return settings.model_dump() | {key: value for key, value in said.items() if value is not None}
