"""The library over HTTP: list, upload and delete soft prompts; load and unload the server's default, as Aphrodite names them.

These routes read and write files, so they are plain functions, which FastAPI runs in threads.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Form, Request, UploadFile
from pydantic import BaseModel, ConfigDict, StrictStr

from sordino import formats
from sordino.errors import SoftPromptFileError, SordinoError
from sordino.library.names import checked_name, readable_name, without_ending
from sordino.server.errors import Refused, not_kept, refused
from sordino.server.prompts import Voice
from sordino.server.serving import state_of

router = APIRouter(prefix="/v1", tags=["soft prompts"])

# What the library's errors advise, as a form says it; it has no field for one of several in a file.
_FIELDS_OF = {
    "--replace": "`replace`: true",
    "--name": "`name`",
    "choose one with --index": "`sordino install --index` takes one of them",
}


class Chosen(BaseModel):
    """soft_prompt_name: of the library."""

    model_config = ConfigDict(extra="forbid")

    soft_prompt_name: StrictStr


class Upload(BaseModel):
    """file: a soft prompt of any format, or a mixture. name: of the library, by default the file's. replace: what has this name."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile
    name: str | None = None
    replace: bool = False


@router.get("/soft_prompts")
def soft_prompts(request: Request) -> dict[str, Any]:
    """Every file of the library: what it is and how well it fits; a broken one with the reason."""
    state = state_of(request)
    default = state.voices.default
    return {"object": "list", "data": [_card(voice, default) for voice in state.voices.all()]}


async def _each_once(request: Request) -> None:
    """Of a field that is given twice the form knows the last one only. The form was read before: this reads nothing."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refused(
            400, "a form was expected: multipart/form-data, as curl -F file=@voice.zip sends it", field="file"
        )
    form = await request.form()
    for field in form:
        if len(form.getlist(field)) > 1:
            raise Refused(400, "given more than once: a request is for one soft prompt", field=field)


@router.post("/soft_prompts", dependencies=[Depends(_each_once)])
def upload(
    request: Request,
    said: Annotated[Upload, Form(media_type="multipart/form-data")],
) -> dict[str, Any]:
    """Read a file with the safe readers and put it into the library as a native zip."""
    state, file = state_of(request), said.file
    given = Path(file.filename or "").name
    if not said.name and (not given or given != file.filename):
        raise Refused(400, "a file name without folders was expected", field="file")
    stem = without_ending(given)
    try:
        name = checked_name(said.name or readable_name(stem if stem != given else Path(given).stem))
    except SordinoError as error:
        raise refused(_in_fields(error), field="name" if said.name else "file") from error
    try:
        with _on_disk(file.file) as path:
            prompt = formats.read_any(path)
        # A file that does not say its name was given that of the path.
        prompt = prompt.with_metadata(name=name) if prompt.metadata.name == path.name else prompt
        entry = state.voices.library.add(prompt, name=name, replace=said.replace)
    except SoftPromptFileError as error:
        told = _in_fields(error)
        # The name that was sent, not where the bytes lay while they were read.
        told.where = told.where.replace(str(path), given or "file")
        raise refused(told, field="file") from error
    except SordinoError as error:
        raise refused(_in_fields(error), field="name" if said.name else "file") from error
    state.voices.refresh()
    # As it was written: somebody else may have taken it away again.
    return _card(state.voices.voice_of(entry), state.voices.default)


@contextmanager
def _on_disk(sent: BinaryIO) -> Iterator[Path]:
    """Formats are found by content; the name is only where the bytes lie while they are read. Raises StorageError."""
    with ExitStack() as stack:
        try:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "upload"
            with path.open("wb") as kept:
                shutil.copyfileobj(sent, kept)
        except OSError as error:
            raise not_kept(error) from error
        yield path


@router.delete("/soft_prompts/{name}")
def delete(request: Request, name: str) -> dict[str, Any]:
    """Move a file into the library's trash. Running requests keep what they have."""
    state = state_of(request)
    try:
        entry = state.voices.named(name).entry
        state.voices.library.remove(entry)
    except SordinoError as error:
        raise refused(error, field="name") from error
    state.voices.refresh()
    return {"id": entry.name, "object": "soft_prompt", "deleted": True}


@router.post("/soft_prompt/load")
def load(request: Request, chosen: Chosen) -> dict[str, Any]:
    """Make a soft prompt the server's default: what requests of KoboldAI's routes get that name none."""
    state = state_of(request)
    try:
        state.voices.set_default(chosen.soft_prompt_name)
    except SordinoError as error:
        raise refused(error, field="soft_prompt_name") from error
    return {"default": state.voices.default}


@router.post("/soft_prompt/unload")
def unload(request: Request) -> dict[str, Any]:
    """No default."""
    state = state_of(request)
    state.voices.set_default(None)
    return {"default": None}


def _in_fields(error: SordinoError) -> SordinoError:
    """The form's fields where the command's flags are named. The class stays: the answer's status goes by it."""
    told = copy(error)
    for flag, field in _FIELDS_OF.items():
        told.do = told.do.replace(flag, field)
    return told


def _card(voice: Voice, default: str | None) -> dict[str, Any]:
    entry, known = voice.entry, voice.entry.metadata
    card: dict[str, Any] = {"id": entry.name, "object": "soft_prompt", "file": voice.file}
    if entry.error:
        return card | {"error": entry.error}
    return card | {
        "n_tokens": entry.n_tokens,
        "components": entry.components,
        "name": known.name,
        "author": known.author,
        "description": known.description,
        "tags": list(known.tags),
        "rating": known.rating,
        "base_model": known.base.id,
        "placement": known.placement,
        "fit": voice.fit.kind if voice.fit else None,
        "fit_reason": voice.fit.reason if voice.fit else "no model is loaded",
        "default": entry.name == default,
    }
