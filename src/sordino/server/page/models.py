"""The base model, chosen on the page: what is available, what it needs, loading with progress, cancelling, unloading."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from fastapi import APIRouter, Request
from pydantic import Field

from sordino.engine.choice import llama_cpp_bytes, why_torch
from sordino.engine.config import EngineOptions
from sordino.errors import SordinoError
from sordino.models import files, hub
from sordino.models.bundled import BUNDLED
from sordino.models.catalogue import catalogue
from sordino.models.files import ModelSource
from sordino.models.gguf_header import read_gguf_header
from sordino.models.sizes import parameters_in
from sordino.models.suited import DeviceMemory, device_memory
from sordino.server.bodies import StrictBody
from sordino.server.errors import refusing
from sordino.server.page.loading import Loader
from sordino.server.page.training_settings import Argument
from sordino.server.serving import Serving, state_of

router = APIRouter(prefix="/ui/models", include_in_schema=False)

# PyTorch's memory besides the weights: the program, rows, prefixes.
_TORCH_BYTES = 600 << 20


def needed_bytes(source: ModelSource, options: EngineOptions, memory: DeviceMemory) -> int | None:
    """An estimate of the memory that this process takes with a model; None where nothing is known of it."""
    known = catalogue().get(source.name)
    path = source.path if source.path is not None and source.path.exists() else None
    try:
        if not why_torch(source, options.runner):
            weights = path.stat().st_size if path else known.download if known else None
            besides = llama_cpp_bytes(source, options, memory.free)
        else:
            parameters = _parameters_in(source, path) if path else known.parameters if known else None
            weights, besides = parameters and memory.per_parameter * parameters, _TORCH_BYTES
    except (SordinoError, OSError):
        return None
    return None if weights is None else weights + besides


def _parameters_in(source: ModelSource, path: Path) -> int:
    return parameters_in(path) if source.kind == "folder" else read_gguf_header(path).n_parameters


class ModelName(StrictBody):
    """name: a bundled model, a path on the server's machine, or a hub id."""

    name: Annotated[Argument, Field(min_length=1, max_length=4096)]


Kind = Literal["bundled", "recent", "downloaded", "hub"]


@router.get("")
def models(request: Request) -> dict[str, Any]:
    """The models to choose from, what is known of them, and the memory that each needs; this machine's; `Loader.status`."""
    loader: Loader = request.app.state.loader
    # Before the state: a tab that learns that loading has ended must see its result.
    status = loader.status()
    state = state_of(request)
    current = state.model if isinstance(state, Serving) else None
    here = {name: folder for name in hub.downloaded() if (folder := hub.on_this_machine(name))}
    kinds: dict[str, Kind] = {}
    names: tuple[tuple[Kind, Any], ...] = (
        ("bundled", BUNDLED),
        ("recent", loader.recent.names()),
        ("downloaded", here),
        ("hub", catalogue()),
    )
    for kind, those in names:
        for name in those:
            kinds.setdefault(name, kind)
    memory = device_memory()
    found = [model_choice(name, kind, here.get(name), loader.options, memory) for name, kind in kinds.items()]
    choices = [one for one in found if one is not None]
    if memory.where == "memory" and loader.options.runner != "vllm":
        # The one in use has taken its part of what was free.
        for one in choices:
            if one["name"] == current:
                one["needed"] = psutil.Process().memory_info().rss
    return {
        "current": current,
        "choices": choices,
        "free": memory.free,
        "memory": asdict(memory),
        **status,
    }


def model_choice(
    name: str, kind: Kind, folder: Path | None, options: EngineOptions, memory: DeviceMemory
) -> dict[str, Any] | None:
    """A row of the list. folder: of a model of the Hub that is here. download: bytes still to fetch; None where unknown. arrived:
    what an earlier download left.
    """
    try:
        source = files.resolve(name)
    except SordinoError:
        return None
    if source.kind == "hub" and folder is not None:
        source = replace(source, kind="folder", path=folder)
    known = catalogue().get(name)
    needed = needed_bytes(source, options, memory)
    is_here = source.path is not None and source.path.exists()
    arrived = hub.arrived_bytes(name) if source.kind == "hub" else 0
    return {
        "name": name,
        "kind": kind,
        "needed": needed,
        "fits": None if needed is None else needed <= memory.total,
        "title": known.title if known else "",
        "parameters": known.parameters if known else None,
        "licence": known.licence if known else "",
        "gated": bool(known and known.gated),
        "download": 0 if is_here else known.download if known else None,
        "arrived": arrived,
    }


@router.post("")
def load(request: Request, body: ModelName) -> dict[str, Any]:
    loader = _loader(request)
    with refusing("name"):
        loader.start(body.name.strip())
    return loader.status()


@router.post("/cancel")
def cancel(request: Request) -> dict[str, Any]:
    _loader(request).cancel()
    return _loader(request).status()


@router.post("/unload")
def unload(request: Request) -> dict[str, Any]:
    _loader(request).unload()
    return _loader(request).status()


def _loader(request: Request) -> Loader:
    loader: Loader = request.app.state.loader
    return loader
