"""A soft prompt looked at closely: what it says about itself, its nearest words; changing that, and other formats."""

from __future__ import annotations

import shutil
import tempfile
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from sordino import formats
from sordino.engine.threads import in_thread_of_its_own
from sordino.errors import SordinoError
from sordino.library.library import add_packaged, edit
from sordino.library.names import MIXTURE_ENDING, checked_name
from sordino.models import files
from sordino.models.gguf_vocabulary import GgufVocabulary
from sordino.prompts.mixture import Mixture, StoredPrompt
from sordino.prompts.nearest import Vocabulary, nearest_words
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.server.errors import Refused, refused
from sordino.server.serving import Serving, state_of

router = APIRouter(prefix="/ui/prompts", include_in_schema=False)

_ENDINGS = {
    "kobold": ".zip",
    "peft": "",
    "mkultra": ".json",
    "npy": ".npy",
    "safetensors": ".safetensors",
    "mixture": MIXTURE_ENDING,
}
_Line = Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Edited(BaseModel):
    """What a soft prompt says about itself; what is None stays."""

    model_config = ConfigDict(extra="forbid")

    name: _Line | None = None
    author: _Line | None = None
    description: Annotated[str, Field(max_length=8000)] | None = None
    licence: _Line | None = None
    tags: Annotated[list[_Line], Field(max_length=64)] | None = None
    rating: Literal["", "general", "mature", "explicit"] | None = None


@router.get("")
def place(request: Request) -> dict[str, Any]:
    """Where the library is. shown: the same in short, from the user's home on."""
    folders = [folder.resolve() for folder in state_of(request).voices.library.folders]
    return {"folders": [str(folder) for folder in folders], "shown": [_from_home(folder) for folder in folders]}


def _from_home(folder: Path) -> str:
    home = Path("~").expanduser().resolve()
    return str("~" / folder.relative_to(home)) if folder.is_relative_to(home) else str(folder)


@router.post("/examples")
def examples(request: Request) -> dict[str, Any]:
    """Sordino's own soft prompts into the library; those that are there stay."""
    voices = state_of(request).voices
    try:
        added = [entry.name for entry in add_packaged(voices.library)]
    except SordinoError as error:
        raise refused(error) from error
    voices.refresh()
    return {"added": added}


@router.get("/{name}")
def details(request: Request, name: str) -> dict[str, Any]:
    """All that the file says."""
    path, prompt = _read(request, name)
    return {
        "id": name,
        "file": state_of(request).voices.named(name).file,
        "format": formats.detect(path),
        "n_tokens": prompt.n_tokens,
        "d_model": prompt.d_model,
        "content_hash": prompt.content_hash,
        "mixture": _mixture(prompt) if isinstance(prompt, Mixture) else None,
        **asdict(prompt.metadata),
    }


def _mixture(mixture: Mixture) -> dict[str, Any]:
    """rule, components, and of each what it is and the weight that it carries. gated: whether the text decides about weights."""
    return {
        "rule": mixture.rule,
        "gated": mixture.gate is not None,
        "components": [
            {"name": soft.metadata.name, "n_tokens": soft.n_tokens, "weight": float(weight)}
            for soft, weight in zip(mixture.components, mixture.weights_K, strict=True)
        ],
    }


@router.get("/{name}/words")
def words(request: Request, name: str) -> dict[str, Any]:
    """For each virtual token the vocabulary's nearest words, by cosine."""
    state = state_of(request)
    if not isinstance(state, Serving):
        raise Refused(503, "no model is loaded: nearest words are words of a model")
    _, prompt = read_named(request, name)
    if prompt.d_model != state.base.d_model:
        raise Refused(400, "the soft prompt is of another width than this model's words")
    known: OrderedDict[tuple[str, str], Any] = request.app.state.words
    key = state.base.fingerprint or state.base.id, prompt.content_hash
    if key not in known:
        known[key] = _nearest(state, prompt)
        while len(known) > 64:
            known.popitem(last=False)
    return {"words": known[key]}


@router.patch("/{name}")
def change(request: Request, name: str, said: Edited) -> dict[str, Any]:
    """Metadata only; the matrix stays as it is."""
    voices = state_of(request).voices
    changes = said.model_dump(exclude_none=True)
    if "tags" in changes:
        changes["tags"] = tuple(tag.strip() for tag in changes["tags"] if tag.strip())
    try:
        edit(voices.named(name).entry.path, changes)
    except SordinoError as error:
        raise refused(error) from error
    voices.refresh()
    return details(request, name)


@router.get("/{name}/export")
def export(
    request: Request, name: str, to: Literal["kobold", "peft", "mkultra", "npy", "safetensors", "mixture"]
) -> FileResponse:
    """The soft prompt in another format, PEFT's folder in a zip; a mixture as the file that it is."""
    _, prompt = _read(request, name)
    if isinstance(prompt, Mixture) != (to == "mixture"):
        raise Refused(400, "a mixture is exported as a mixture, and nothing else is", field="to")
    try:
        folder = Path(tempfile.mkdtemp(prefix="sordino-"))
    except OSError as error:
        raise Refused(507, f"the file cannot be made ({error.strerror})") from error
    gone = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    try:
        target = folder / f"{checked_name(name)}{_ENDINGS[to]}"
        if isinstance(prompt, Mixture):
            formats.write_mixture(prompt, target)
        else:
            # What the format cannot say is the page's to tell; PEFT's refusal stays one.
            formats.write(prompt, target, to=to)
        if target.is_dir():
            target = Path(shutil.make_archive(str(folder / f"{name}-peft"), "zip", folder, target.name))
    except SordinoError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise refused(error, field="to") from error
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise Refused(507, f"the file cannot be made ({error.strerror})") from error
    return FileResponse(target, filename=target.name, background=gone)


def read_named(request: Request, name: str) -> tuple[Path, SoftPrompt]:
    """The file and the soft prompt in it. Raises Refused, for a mixture too."""
    path, prompt = _read(request, name)
    if isinstance(prompt, Mixture):
        raise Refused(400, "a mixture has no virtual tokens of its own: its components have")
    return path, prompt


def _read(request: Request, name: str) -> tuple[Path, StoredPrompt]:
    try:
        path = state_of(request).voices.named(name).entry.path
        return path, formats.read_any(path)
    except SordinoError as error:
        raise refused(error, field="name") from error


def vocabulary_of(serving: Serving) -> Vocabulary:
    """The words of the model that is served. Raises Refused (501) where they cannot be read."""
    if serving.backend.network is not None:
        return serving.backend.network
    try:
        path = files.gguf_file(files.resolve(serving.base.name))
        assert path is not None
        return GgufVocabulary(serving.base, path)
    except (SordinoError, OSError) as error:
        raise Refused(501, f"the words of this model's file cannot be read: {error}") from error


def _nearest(serving: Serving, prompt: SoftPrompt) -> list[list[tuple[str, float]]]:
    vocabulary = vocabulary_of(serving)
    try:
        return in_thread_of_its_own(lambda: nearest_words(vocabulary, prompt))
    except (SordinoError, OSError, NotImplementedError) as error:
        raise Refused(501, f"the words of this model's file cannot be read: {error}") from error
