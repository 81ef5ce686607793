"""Repositories for the stand-in for the Hub."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sordino import formats
from sordino.formats.model_card import card
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.prompt_files import matrix

KNOWN = Metadata(
    name="Keeper",
    description="Logs of a light",
    base=BaseRef("org/small", "llama", 8, 2, 100, fingerprint="f" * 64),
    licence="CC-BY-4.0",
    tags=("sea",),
)


def keeper(seed: int = 0, **changes: Any) -> SoftPrompt:
    return SoftPrompt(matrix(seed), replace(KNOWN, **changes))


def files_of(prompt: SoftPrompt, folder: Path) -> dict[str, bytes]:
    """What a repository of it holds: an adapter, a zip and a card. folder: for work, not there yet."""
    folder.mkdir()
    formats.write(prompt, folder / "adapter", to="peft", force=True)
    formats.write(prompt, folder / "it.zip", force=True)
    found = {path.name: path.read_bytes() for path in (folder / "adapter").iterdir()}
    return found | {"keeper.zip": (folder / "it.zip").read_bytes(), "README.md": card(prompt, repository="ines/keeper")}


def adapter_of(prompt: SoftPrompt, folder: Path) -> dict[str, bytes]:
    """The same without the zip."""
    return {name: data for name, data in files_of(prompt, folder).items() if name != "keeper.zip"}


def npy(prompt: SoftPrompt) -> bytes:
    stream = io.BytesIO()
    np.save(stream, prompt.matrix)
    return stream.getvalue()
