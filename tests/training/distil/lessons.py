"""A small distillation to test: a tiny model, a short text, openings of our own."""

from __future__ import annotations

from pathlib import Path

import torch

from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata
from sordino.training.config import TextPaths
from sordino.training.distil.config import DistilConfig
from sordino.training.job import Job
from tests.tiny_models import tiny_base

WORDS = "The keeper wrote of the sea and of the lamp, and the ship was late."
OPENINGS = (
    "the ship",
    "the lamp",
    "the sea",
    "of the keeper",
    "was the",
    "wrote of",
    "and the",
    "to the sea",
    "lamp and",
    "who",
)


def small_base(family: str = "llama", *, dtype: torch.dtype = torch.float32) -> BaseModel:
    return tiny_base(family, dtype=dtype)


def small_config(folder: Path, **changes: object) -> DistilConfig:
    openings = folder / "openings.txt"
    openings.write_text("\n".join(OPENINGS))
    settings = {
        "tokens": 3,
        "continuations": 16,
        "length": 6,
        "steps": 4,
        "batch": 3,
        "openings": str(openings),
        "text": WORDS,
    }
    return DistilConfig(**{**settings, **changes})  # type: ignore[arg-type]


def small_job(folder: Path, name: str = "v", **changes: object) -> Job:
    config = small_config(folder, **changes)
    return Job(TextPaths(()), folder / f"{name}.zip", "tiny", Metadata(name=name), config.for_loop(), distil=config)
