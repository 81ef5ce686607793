"""The settings of a training run as the page sends them, and as flags of `sordino train`."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sordino.errors import SordinoError
from sordino.models.files import absolute_name
from sordino.server.errors import Refused, refused
from sordino.server.serving import Serving, state_of
from sordino.training.queue import Jobs


def _argument(text: str) -> str:
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("no NUL and no half of a character may be in it")
    return text


# A text that a process can be given on its command line.
Argument = Annotated[str, AfterValidator(_argument)]
_Short = Annotated[Argument, Field(max_length=200)]
_Text = Annotated[Argument, Field(max_length=4000)]


class Settings(BaseModel):
    """What `sordino train` takes, by the same names; what is None is left to its defaults. start_from: a soft prompt of the
    library, or the result of a run ("run:ID"), to go on from.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: _Short = ""
    author: _Short = ""
    description: _Text = ""
    licence: _Short = ""
    tags: _Short = ""
    rating: Literal["", "general", "mature", "explicit"] = ""
    tokens: int | None = None
    steps: int | None = None
    minutes: float | None = None
    batch: int | None = None
    row_tokens: int | None = None
    lr: float | None = None
    find_lr: bool = False
    start_from: Argument = ""
    init: _Text | None = None
    method: Literal["plain", "residual"] | None = None
    placement: Literal["auto", "start", "after_bos"] | None = None
    warmup: float | None = None
    clip: float | None = None
    weight_decay: float | None = None
    average: float | None = None
    patience: int | None = None
    evaluate_every: int | None = None
    sample_every: int | None = None
    sample_text: _Text | None = None
    pass_tokens: int | None = None
    speaker: _Short | None = None
    seed: int | None = None
    no_samples: bool = False


class Asked(BaseModel):
    """model: the base model, by default the one that is served."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[Argument, Field(max_length=4096)] = ""
    settings: Settings = Settings()


def flags_of(request: Request, jobs: Jobs, settings: Settings) -> list[str]:
    """The settings as flags of `sordino train`. Raises Refused."""
    said = settings.model_dump(exclude={"start_from"})
    said["name"] = settings.name or "voice"
    if settings.start_from.startswith("run:"):
        try:
            other = jobs.get(settings.start_from.removeprefix("run:"))
        except SordinoError as error:
            raise Refused(404, error.message, field="start_from") from error
        said["init"] = f"file:{jobs.files.result(other)}"
    elif settings.start_from:
        try:
            entry = state_of(request).prompts.named(settings.start_from).entry
        except SordinoError as error:
            raise refused(error, field="start_from") from error
        if entry.components:
            raise Refused(400, "a run starts from one soft prompt, and this is a mixture", field="start_from")
        said["init"] = f"file:{entry.path}"
    flags = []
    for key, value in said.items():
        flag = f"--{key.replace('_', '-')}"
        if value is True:
            flags.append(flag)
        # 0 is a value, and equal to False: it turns some settings off.
        elif value is not None and value is not False and value != "":
            flags.append(f"{flag}={value}")
    return flags


def model_of(request: Request, asked: Asked) -> str:
    state = state_of(request)
    # The queue outlives this process and its working directory.
    return absolute_name(asked.model or (state.base.name if isinstance(state, Serving) else "smollm2"))
