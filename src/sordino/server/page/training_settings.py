"""The settings of a training run as the page sends them, and as flags of `sordino train`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import Request
from pydantic import AfterValidator, ConfigDict, Field, create_model

from sordino.errors import SordinoError
from sordino.models.bundled import DEFAULT_MODEL
from sordino.models.files import absolute_name
from sordino.models.weight_formats import OFFLOAD
from sordino.server.bodies import StrictBody
from sordino.server.errors import Refused, refusing
from sordino.server.serving import Serving, state_of
from sordino.settings import Setting, form_of, offered_of
from sordino.training.calibration import Calibration
from sordino.training.config import Description, ReadingConfig, TrainConfig
from sordino.training.queue import Jobs


def _argument(text: str) -> str:
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("a text without NUL and without lone surrogates was expected")
    return text


# A text that a process can be given on its command line.
Argument = Annotated[str, AfterValidator(_argument)]
_Short = Annotated[Argument, Field(max_length=200)]
_Text = Annotated[Argument, Field(max_length=4000)]


# The settings of a run, and the metadata of its file.
RUN = (TrainConfig, Calibration, ReadingConfig)
ABOUT = (Description,)


def _field_of(each: Setting) -> tuple[Any, Any]:
    if each.kind is bool:
        return bool, False
    kind: Any = Literal[each.choices] if each.choices else _Text if each.kind is str else each.kind
    return kind | None, None


if TYPE_CHECKING:
    _FromSettings = StrictBody
else:
    _FromSettings = create_model(
        "_FromSettings",
        __base__=StrictBody,
        **{name: _field_of(each) for cls in (*RUN, *ABOUT) for name, each in offered_of(cls).items()},
    )


class RunSettings(_FromSettings):
    """The settings of `sordino train`, by the same names; None means its default. start_from: a soft prompt of the library, or
    the result of a run ("run:ID").
    """

    model_config = ConfigDict(allow_inf_nan=False)

    name: _Short = ""
    start_from: Argument = ""


class RunRequest(StrictBody):
    """model: the base model, by default the one that is served."""

    model: Annotated[Argument, Field(max_length=4096)] = ""
    settings: RunSettings = RunSettings()


def flags_of(request: Request, jobs: Jobs, settings: RunSettings) -> list[str]:
    """The settings as flags of `sordino train`. Raises Refused."""
    values = {"name": settings.name or "voice", **settings.model_dump(exclude={"start_from", "name"})}
    if settings.start_from.startswith("run:"):
        try:
            other = jobs.get(settings.start_from.removeprefix("run:"))
        except SordinoError as error:
            raise Refused(404, error.message, field="start_from") from error
        values["init"] = f"file:{jobs.files.result(other)}"
    elif settings.start_from:
        with refusing("start_from"):
            entry = state_of(request).prompts.named(settings.start_from).entry
        if entry.components:
            raise Refused(400, "a run starts from one soft prompt, and this is a mixture", field="start_from")
        values["init"] = f"file:{entry.path}"
    state = state_of(request)
    if isinstance(state, Serving) and (layers := state.base.quantise):
        # A run has the room that the server has.
        values |= {"offload": True} if layers == OFFLOAD else {"quantise": layers}
    flags = []
    for key, value in values.items():
        flag = f"--{key.replace('_', '-')}"
        if value is True:
            flags.append(flag)
        # 0 is a value, and equal to False: it turns some settings off.
        elif value is not None and value is not False and value != "":
            flags.append(f"{flag}={value}")
    return flags


def model_of(request: Request, name: str = "") -> str:
    state = state_of(request)
    # The queue outlives this process and its working directory.
    return absolute_name(name or (state.base.name if isinstance(state, Serving) else DEFAULT_MODEL))


def form() -> dict[str, Any]:
    """The fields of the page's form: run, about. model: the default of a run, while none is served."""
    return {
        "model": DEFAULT_MODEL,
        "run": [one for cls in RUN for one in form_of(cls)],
        "about": [one for cls in ABOUT for one in form_of(cls)],
    }
