"""The first visit: Sordino's own soft prompts, and the bundled model that they were made for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request

from sordino import formats
from sordino.library.names import without_ending
from sordino.library.packaged import packaged
from sordino.models.bundled import BUNDLED, BundledModel
from sordino.models.suited import device_memory
from sordino.server.page.loading import Loader
from sordino.server.page.models import model_choice

router = APIRouter(prefix="/ui/starters", include_in_schema=False)


@dataclass(frozen=True)
class Starter:
    """A packaged soft prompt. opening: of its first sample. base: the id of the model that it was made for."""

    name: str
    title: str
    opening: str
    base: str


@cache
def packaged_starters() -> tuple[Starter, ...]:
    """In the order of their names."""
    found = []
    for item in sorted(packaged(), key=lambda item: item.name):
        with resources.as_file(item) as path:
            metadata = formats.read_any(path).metadata
        name = without_ending(item.name)
        opening = str(metadata.samples[0].get("prompt", "")) if metadata.samples else ""
        found.append(Starter(name, metadata.name or name, opening, metadata.base.id))
    return tuple(found)


def starting_model() -> BundledModel:
    """The first bundled model that a packaged soft prompt was made for."""
    bases = [one.base for one in packaged_starters()]
    return next((model for model in BUNDLED.values() if model.id in bases), next(iter(BUNDLED.values())))


@router.get("")
def starters(request: Request) -> dict[str, Any]:
    """The model, what it needs, the megabytes to download, and whether it is here; the soft prompts that were made for it."""
    loader: Loader = request.app.state.loader
    model = starting_model()
    choice = model_choice(model.name, "bundled", None, loader.options, device_memory())
    assert choice is not None
    return {
        "model": model.name,
        "megabytes": model.megabytes,
        "present": choice["download"] == 0,
        "needed": choice["needed"],
        "fits": choice["fits"],
        "prompts": [
            {"name": one.name, "title": one.title, "opening": one.opening}
            for one in packaged_starters()
            if one.base == model.id
        ],
    }
