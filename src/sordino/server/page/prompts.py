"""Details of a soft prompt: its metadata, which can be changed, its nearest words, and export to other formats."""

from __future__ import annotations

import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from sordino.library.editing import edit
from sordino.library.library import add_packaged
from sordino.library.names import ENDINGS, checked_name
from sordino.models import files
from sordino.models.gguf_vocabulary import GgufVocabulary
from sordino.prompts.kv_prompt import KVPrompt
from sordino.prompts.mixture import Mixture, StoredPrompt
from sordino.prompts.nearest import Vocabulary, nearest_words
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.server.errors import Refused, refused, refusing
from sordino.server.prompts import model_key
from sordino.server.serving import Serving, state_of

router = APIRouter(prefix="/ui/prompts", include_in_schema=False)

_FORMATS: Mapping[str, Mapping[str, str]] = {
    SoftPrompt.kind: formats.WRITABLE,
    KVPrompt.kind: formats.KV_WRITABLE,
    Mixture.kind: {"mixture": ENDINGS[Mixture.kind]},
}
# Results for pairs of a model and a soft prompt.
_MOST_CACHED = 128
_Line = Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]


class MetadataChanges(BaseModel):
    """New values of a soft prompt's metadata; None leaves the old one."""

    model_config = ConfigDict(extra="forbid")

    name: _Line | None = None
    author: _Line | None = None
    description: Annotated[str, Field(max_length=8000)] | None = None
    licence: _Line | None = None
    tags: Annotated[list[_Line], Field(max_length=64)] | None = None
    rating: Literal["", "general", "mature", "explicit"] | None = None


@router.get("")
def library_folders(request: Request) -> dict[str, Any]:
    """Where the library is. shown: the same, short, relative to the user's home."""
    folders = [folder.resolve() for folder in state_of(request).prompts.library.folders]
    return {"folders": [str(folder) for folder in folders], "shown": [_relative_to_home(folder) for folder in folders]}


def _relative_to_home(folder: Path) -> str:
    home = Path("~").expanduser().resolve()
    return str("~" / folder.relative_to(home)) if folder.is_relative_to(home) else str(folder)


@router.post("/examples")
def examples(request: Request) -> dict[str, Any]:
    """Copy Sordino's own soft prompts into the library; those that are there stay."""
    prompts = state_of(request).prompts
    added = [entry.name for entry in add_packaged(prompts.library)]
    prompts.refresh()
    return {"added": added}


@router.get("/{name}")
def details(request: Request, name: str) -> dict[str, Any]:
    """All that the file holds."""
    path, prompt = _read(request, name)
    return {
        "id": name,
        "file": state_of(request).prompts.named(name).file,
        "format": formats.detect(path),
        "kind": prompt.kind,
        "kv": asdict(prompt.shape) if isinstance(prompt, KVPrompt) else None,
        "n_tokens": prompt.n_tokens,
        "d_model": prompt.d_model,
        "content_hash": prompt.content_hash,
        "mixture": _mixture(prompt) if isinstance(prompt, Mixture) else None,
        **asdict(prompt.metadata),
    }


def _mixture(mixture: Mixture) -> dict[str, Any]:
    """The rule, and each component with its weight. gated: whether the weights depend on the text."""
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
    prompt = read_for(request, state, name)
    key = f"nearest {prompt.content_hash}"
    with vocabulary_errors():
        return {"words": cached(request, state, key, lambda: nearest_words(vocabulary_of(state), prompt))}


def cached(request: Request, serving: Serving, key: str, make: Callable[[], Any]) -> Any:
    """The result of `make` for this model and key: an earlier one, or a new one, computed in a thread of its own."""
    cache: OrderedDict[tuple[str, str], Any] = request.app.state.inspections
    full_key = model_key(serving.base), key
    if full_key not in cache:
        cache[full_key] = in_thread_of_its_own(make)
        while len(cache) > _MOST_CACHED:
            cache.popitem(last=False)
    return cache[full_key]


@router.patch("/{name}")
def change(request: Request, name: str, body: MetadataChanges) -> dict[str, Any]:
    """Metadata only; the matrix stays as it is."""
    prompts = state_of(request).prompts
    changes = body.model_dump(exclude_none=True)
    if "tags" in changes:
        changes["tags"] = tuple(tag.strip() for tag in changes["tags"] if tag.strip())
    edit(prompts.named(name).entry.path, changes)
    prompts.refresh()
    return details(request, name)


@router.get("/{name}/export")
def export(
    request: Request,
    name: str,
    to: Literal["kobold", "peft", "mkultra", "npy", "safetensors", "kv", "cartridge", "mixture"],
) -> FileResponse:
    """The soft prompt in another format, a folder (PEFT) as a zip; a mixture as the file that it is."""
    _, prompt = _read(request, name)
    if to not in _FORMATS[prompt.kind]:
        known = ", ".join(_FORMATS[prompt.kind])
        raise Refused(400, f"one of this kind, {prompt.kind}, is exported as {known}, and as nothing else", field="to")
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="sordino-"))
        target = folder / f"{checked_name(name)}{_FORMATS[prompt.kind][to]}"
        # The page says what the format cannot hold; what PEFT cannot hold at all is refused here.
        formats.write_any(prompt, target, to=to)
        if target.is_dir():
            target = Path(shutil.make_archive(str(folder / f"{name}-{to}"), "zip", folder, target.name))
    except (SordinoError, OSError) as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, SordinoError):
            raise refused(error, field="to") from error
        raise Refused(507, f"the file cannot be made ({error.strerror})") from error
    delete = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    return FileResponse(target, filename=target.name, background=delete)


def read_for(request: Request, serving: Serving, name: str) -> SoftPrompt:
    """An embedding prompt of the width of the model that is served. Raises Refused, for other kinds too."""
    _, prompt = _read(request, name)
    if isinstance(prompt, Mixture):
        raise Refused(400, "a mixture has no virtual tokens of its own: its components have")
    if isinstance(prompt, KVPrompt):
        raise Refused(400, "a KV prompt has no matrix, and so no nearest words")
    if prompt.d_model != serving.base.d_model:
        raise Refused(400, "the soft prompt has another width than this model's embeddings")
    return prompt


def _read(request: Request, name: str) -> tuple[Path, StoredPrompt]:
    with refusing("name"):
        path = state_of(request).prompts.named(name).entry.path
        return path, formats.read_any(path)


def vocabulary_of(serving: Serving) -> Vocabulary:
    """The vocabulary of the model that is served, from the backend or from the model's GGUF file. Raises SordinoError, OSError."""
    if serving.backend.network is not None:
        return serving.backend.network
    path = files.gguf_file(files.resolve(serving.base.name))
    assert path is not None
    return GgufVocabulary(serving.base, path)


@contextmanager
def vocabulary_errors() -> Iterator[None]:
    """A vocabulary that cannot be read is refused (501)."""
    try:
        yield
    except (SordinoError, OSError, NotImplementedError) as error:
        raise Refused(501, f"the vocabulary of this model's file cannot be read: {error}") from error
