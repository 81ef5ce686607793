"""What commands that use a base model are tested on: a tiny random one, and soft prompts for it in the library."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from sordino import formats
from sordino.models.base_model import BaseModel
from sordino.models.sizes import ModelSizes
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.prompt_files import matrix
from tests.tiny_models import tiny_base


@cache
def tiny_llama() -> BaseModel:
    return tiny_base("llama")


def drop_voice(path: Path, *, seed: int = 0, tokens: int = 5, width: int = 32, base: BaseRef | None = None) -> Path:
    """A soft prompt as wide as the tiny model, which names no base model unless one is given."""
    metadata = Metadata(name=path.stem, base=base or BaseRef())
    formats.write(SoftPrompt(matrix(seed, tokens, width), metadata), path)
    return path


def tiny_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library's folder, with `fog` and `oil` in it and a prompt of another width. Whatever model is asked for is tiny."""
    library, here = tmp_path / "library", tmp_path / "here"
    for folder in (library, here):
        folder.mkdir()
    drop_voice(library / "fog.zip", seed=1)
    drop_voice(library / "oil.zip", seed=2, tokens=3)
    drop_voice(library / "wide.zip", seed=3, width=64)
    monkeypatch.chdir(here)
    monkeypatch.setenv("SORDINO_LIBRARY", str(library))
    monkeypatch.setattr("sordino.models.base_model.load", lambda name, **_: tiny_llama())
    monkeypatch.setattr("sordino.models.sizes.sizes_of", lambda name: ModelSizes(name, tiny_llama().ref))
    # It has no file for llama.cpp.
    monkeypatch.setattr("sordino.engine.choice.why_not", lambda: "the model is tiny")
    return library
