"""A soft prompt and a folder of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import sordino
from sordino.models.base_model import BaseModel
from tests.log_texts import LOG


def prompt(base: BaseModel, tokens: int = 4, *, seed: int = 0, width: int | None = None) -> sordino.SoftPrompt:
    matrix = np.random.default_rng(seed).standard_normal((tokens, width or base.d_model)).astype(np.float32) * 0.5
    return sordino.SoftPrompt(matrix, sordino.Metadata(name=f"p{seed}", placement=base.placement))


def texts(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.txt").write_text(f"Day {number}. " + LOG * (number + 3))
    return folder
