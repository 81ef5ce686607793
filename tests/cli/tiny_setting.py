"""What commands that use a base model are tested on: a tiny random one, and soft prompts for it in the library."""

from __future__ import annotations

import json
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sordino.base_model import BaseModel
from tests.prompt_files import npy
from tests.tiny_models import tiny_base


@cache
def tiny_llama() -> BaseModel:
    return tiny_base("llama")


def drop_voice(path: Path, *, seed: int = 0, tokens: int = 5, width: int = 32, **sordino: object) -> Path:
    """A soft prompt for the tiny model as a zip. sordino: fields of the `sordino` object."""
    matrix = np.random.default_rng(seed).standard_normal((tokens, width)).astype(np.float32)
    meta: dict[str, Any] = {"name": path.stem, "supported": [], "description": ""}
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("meta.json", json.dumps(meta | ({"sordino": sordino} if sordino else {})))
        archive.writestr("tensor.npy", npy(matrix))
    return path


def tiny_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library's folder, with `fog` and `oil` in it and a prompt of another width. Whatever model is asked for is tiny."""
    library, here = tmp_path / "library", tmp_path / "here"
    drop_voice(library / "fog.zip", seed=1)
    drop_voice(library / "oil.zip", seed=2, tokens=3)
    drop_voice(library / "wide.zip", seed=3, width=64)
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("SORDINO_LIBRARY", str(library))
    monkeypatch.setattr("sordino.base_model.load", lambda name, **_: tiny_llama())
    return library
