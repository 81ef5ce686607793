"""The library on the page: what a row and the page of a soft prompt show, changed metadata, the trash, export to other formats."""

from __future__ import annotations

import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from pydantic import Field
from starlette.background import BackgroundTask

from sordino import formats
from sordino.engine.waiting import in_thread_of_its_own
from sordino.errors import SordinoError
from sordino.library.editing import edit
from sordino.library.library import add_packaged
from sordino.library.names import ENDINGS, checked_name
from sordino.library.trash import shown_name
from sordino.models import files
from sordino.models.bundled import BUNDLED
from sordino.models.catalogue import sizes_here, suggestion
from sordino.models.description import DescribedModel
from sordino.models.gguf_vocabulary import GgufVocabulary
from sordino.models.sizes import ModelSizes
from sordino.prompts.description import made_for
from sordino.prompts.kv_prompt import KVPrompt
from sordino.prompts.mixture import Mixture, StoredPrompt
from sordino.prompts.nearest import Vocabulary, nearest_words
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.server.bodies import StrictBody, long_answer
from sordino.server.errors import Refused, refused, refusing
from sordino.server.prompts import ServedPrompt, ServedPrompts, model_key
from sordino.server.prompts_api import card
from sordino.server.serving import Serving, state_of

router = APIRouter(prefix="/ui/prompts", include_in_schema=False)

_FORMATS: Mapping[str, Mapping[str, str]] = {
    SoftPrompt.kind: formats.WRITABLE,
    KVPrompt.kind: formats.KV_WRITABLE,
    Mixture.kind: {"mixture": ENDINGS[Mixture.kind]},
}
# Results for pairs of a model and a soft prompt.
_MOST_CACHED = 128
# Of a sample's text in a row of the list.
SAMPLE_CHARS = 400
_Line = Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]


class MetadataChanges(StrictBody):
    """New values of a soft prompt's metadata; None leaves the old one."""

    name: _Line | None = None
    author: _Line | None = None
    description: Annotated[str, Field(max_length=8000)] | None = None
    licence: _Line | None = None
    tags: Annotated[list[_Line], Field(max_length=64)] | None = None
    rating: Literal["", "general", "mature", "explicit"] | None = None


class Trashed(StrictBody):
    """trash: what the answer to a removal says."""

    trash: Annotated[str, Field(min_length=1, max_length=4096)]


@router.get("")
def library(request: Request) -> Response:
    """Where the library is, and a row for each of its files. shown: the folders, short, relative to the user's home."""
    prompts = state_of(request).prompts
    folders = [folder.resolve() for folder in prompts.library.folders]
    # Looked up once, and only where a file does not fit.
    here: list[Mapping[str, ModelSizes]] = []

    def row(one: ServedPrompt) -> dict[str, Any]:
        if one.entry.error or one.usable:
            return _row(one, prompts, {})
        if not here:
            here.append(sizes_here())
        return _row(one, prompts, here[0])

    return long_answer(
        "prompts",
        map(row, prompts.all()),
        folders=[str(folder) for folder in folders],
        shown=[_relative_to_home(folder) for folder in folders],
    )


def _row(one: ServedPrompt, prompts: ServedPrompts, here: Mapping[str, ModelSizes]) -> dict[str, Any]:
    """What the API says of it, a sample, what was measured, and of one that does not fit why, and a model that it fits."""
    found, known = card(one, prompts.default), one.entry.metadata
    if one.entry.error:
        return found
    sample = known.samples[0] if known.samples else {}
    return found | {
        "sample": {key: str(sample[key])[:SAMPLE_CHARS] for key in ("prompt", "with") if key in sample},
        "heldout": known.heldout,
        **unfit_of(one, prompts.base, here),
    }


def unfit_of(one: ServedPrompt, base: DescribedModel | None, here: Mapping[str, ModelSizes]) -> dict[str, Any]:
    """unfit: why it does not fit, in a sentence. model: what it was made for, if that is known."""
    if one.usable:
        return {}
    entry = one.entry
    wide = base is not None and entry.d_model not in (0, base.d_model)
    # Never a path.
    title = base and (base.name if base.name in BUNDLED else base.id)
    why = f"{title} is {base.d_model} wide" if base and wide else one.fit.reason if one.fit else ""
    suggested = suggestion(entry.parts, here)
    return {
        "unfit": f"Made for {made_for(entry.metadata, entry.d_model)}" + (f"; {why}." if why else "."),
        "model": asdict(suggested) if suggested else None,
    }


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


@router.delete("/{name}")
def remove(request: Request, name: str) -> dict[str, Any]:
    """Move a file to the library's trash, from where it can be put back. Running requests are not affected."""
    prompts = state_of(request).prompts
    with refusing("name"):
        place = prompts.library.remove(prompts.named(name).entry)
    prompts.refresh()
    return {"trash": shown_name(place)}


@router.post("/restore")
def restore(request: Request, body: Trashed) -> dict[str, Any]:
    """Put back what was removed."""
    prompts = state_of(request).prompts
    with refusing("trash"):
        entry = prompts.library.restore(body.trash)
    prompts.refresh()
    return {"id": entry.name}


@router.get("/{name}")
def details(request: Request, name: str) -> dict[str, Any]:
    """All that the file holds, and how well it fits."""
    path, prompt = _read(request, name)
    prompts = state_of(request).prompts
    one = prompts.named(name)
    return {
        "id": name,
        "file": one.file,
        "made_for": made_for(prompt.metadata, prompt.d_model),
        "fit": one.fit.kind if one.fit else None,
        **unfit_of(one, prompts.base, {} if one.usable else sizes_here()),
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
        raise Refused(503, "no model is loaded: the nearest words are looked up in a model's vocabulary")
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
        raise Refused(400, f"of the kind {prompt.kind}, a soft prompt is exported only as {known}", field="to")
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
        raise Refused(400, "the soft prompt's width is not that of this model's embeddings")
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
