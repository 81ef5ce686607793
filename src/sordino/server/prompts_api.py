"""The library over HTTP: list, upload and delete soft prompts; load and unload the server's default (routes named as in Aphrodite).

These routes read and write files, so they are plain functions, which FastAPI runs in threads.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Form, Request, UploadFile
from pydantic import StrictStr

from sordino import formats
from sordino.errors import SoftPromptFileError, SordinoError
from sordino.library.names import checked_name, readable_name, without_ending
from sordino.prompts.description import made_for
from sordino.server.bodies import StrictBody, long_answer
from sordino.server.errors import Refused, refused, refusing, upload_not_stored
from sordino.server.prompts import ServedPrompt
from sordino.server.serving import state_of

router = APIRouter(prefix="/v1", tags=["soft prompts"])

# The library's errors advise flags of the command; these are the form's fields. It has none for one of several in a file.
_FIELDS_OF = {
    "--replace": "`replace`: true",
    "--name": "`name`",
    "choose one with --index": "`sordino install --index` takes one of them",
}


class DefaultChoice(StrictBody):
    """soft_prompt_name: of the library."""

    soft_prompt_name: StrictStr


class UploadForm(StrictBody):
    """file: of any format and kind. name: in the library, by default the file's. replace: an entry of this name."""

    file: UploadFile
    name: str | None = None
    replace: bool = False


@router.get("/soft_prompts", response_model=dict[str, Any])
def soft_prompts(request: Request) -> Any:
    """Every file of the library: what it is and how well it fits; a broken one with the reason."""
    prompts = state_of(request).prompts
    default = prompts.default
    return long_answer("data", (card(one, default) for one in prompts.all()), object="list")


async def _no_repeated_fields(request: Request) -> None:
    """The parsed form keeps only the last of a repeated field. It is parsed already: this reads nothing."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refused(
            400, "a form was expected: multipart/form-data, as curl -F file=@voice.zip sends it", field="file"
        )
    form = await request.form()
    for field in form:
        if len(form.getlist(field)) > 1:
            raise Refused(400, "given more than once: a request is for one soft prompt", field=field)


@router.post("/soft_prompts", dependencies=[Depends(_no_repeated_fields)])
def upload(request: Request, form: Annotated[UploadForm, Form(media_type="multipart/form-data")]) -> dict[str, Any]:
    """Read a file with the safe readers and add it to the library as the native file of its kind."""
    prompts, file = state_of(request).prompts, form.file
    filename = Path(file.filename or "").name
    if not form.name and (not filename or filename != file.filename):
        raise Refused(400, "a file name without folders was expected", field="file")
    field = "name" if form.name else "file"
    stem = without_ending(filename)
    try:
        name = checked_name(form.name or readable_name(stem if stem != filename else Path(filename).stem))
        with _on_disk(file.file) as path:
            prompt = formats.read_any(path)
        # A file without a name in it was given that of the temporary file.
        prompt = prompt.with_metadata(name=name) if prompt.metadata.name == path.name else prompt
        entry = prompts.library.add(prompt, name=name, replace=form.replace)
    except SoftPromptFileError as error:
        public = _with_form_fields(error)
        # The name that the client sent, not the path of the temporary file.
        public.where = public.where.replace(str(path), filename or "file")
        raise refused(public, field="file") from error
    except SordinoError as error:
        raise refused(_with_form_fields(error), field=field) from error
    prompts.refresh()
    # As it was written: somebody else may have removed it again.
    return card(prompts.served(entry), prompts.default)


@contextmanager
def _on_disk(upload: BinaryIO) -> Iterator[Path]:
    """A temporary copy under a neutral name: formats are detected by content. Raises StorageError."""
    with ExitStack() as stack:
        try:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "upload"
            with path.open("wb") as target:
                shutil.copyfileobj(upload, target)
        except OSError as error:
            raise upload_not_stored(error) from error
        yield path


@router.delete("/soft_prompts/{name}")
def delete(request: Request, name: str) -> dict[str, Any]:
    """Move a file to the library's trash. Running requests are not affected."""
    prompts = state_of(request).prompts
    with refusing("name"):
        entry = prompts.named(name).entry
        prompts.library.remove(entry)
    prompts.refresh()
    return {"id": entry.name, "object": "soft_prompt", "deleted": True}


@router.post("/soft_prompt/load")
def load(request: Request, choice: DefaultChoice) -> dict[str, Any]:
    """Set the server's default: what requests of KoboldAI's routes use that name no soft prompt."""
    prompts = state_of(request).prompts
    with refusing("soft_prompt_name"):
        prompts.set_default(choice.soft_prompt_name)
    return {"default": prompts.default}


@router.post("/soft_prompt/unload")
def unload(request: Request) -> dict[str, Any]:
    """Clear the server's default."""
    state_of(request).prompts.set_default(None)
    return {"default": None}


def _with_form_fields(error: SordinoError) -> SordinoError:
    """The error with the form's fields in place of the command's flags. Its class stays, as the status depends on it."""
    public = copy(error)
    for flag, field in _FIELDS_OF.items():
        public.do = public.do.replace(flag, field)
    return public


def card(prompt: ServedPrompt, default: str | None) -> dict[str, Any]:
    """What a list of soft prompts says of one: what it is and how well it fits; of a broken one, why."""
    entry, metadata = prompt.entry, prompt.entry.metadata
    known: dict[str, Any] = {"id": entry.name, "object": "soft_prompt", "file": prompt.file}
    if entry.error:
        return known | {"error": entry.error}
    return known | {
        "n_tokens": entry.n_tokens,
        "kind": entry.kind,
        "components": entry.components,
        "name": metadata.name,
        "author": metadata.author,
        "description": metadata.description,
        "tags": list(metadata.tags),
        "rating": metadata.rating,
        "base_model": metadata.base.id,
        "made_for": made_for(metadata, entry.d_model),
        "placement": metadata.placement,
        # Of each component of a mixture, or of the one prompt.
        "attention": [asdict(part.metadata.attention) for part in entry.parts],
        "fit": prompt.fit.kind if prompt.fit else None,
        "fit_reason": prompt.fit.reason if prompt.fit else "no model is loaded",
        "default": entry.name == default,
    }
