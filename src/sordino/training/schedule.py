"""What each step of a run does, as its settings have it: the learning rate, and which examples it sees."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sordino.texts.examples import Example
from sordino.training.config import TrainConfig
from sordino.training.pace import places_at, rate_at


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of step `step` (from 0), in units of the embedding RMS: linear warm-up, then a cosine to final_lr."""
    return rate_at(step, steps=config.steps, lr=config.lr, warmup=config.warmup, final_lr=config.final_lr)


def batch_at(examples: Sequence[Example], step: int, config: TrainConfig) -> list[Example]:
    """The examples of step `step`: epochs one after another, each in an order of its own that depends on seed and epoch alone."""
    places = places_at(step, total=len(examples), batch=config.batch, seed=config.seed)
    return [examples[place] for place in places]


def hash_of(examples: Sequence[Example]) -> str:
    """SHA-256 of the examples in their order, which decides what each step sees."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((list(example.ids), list(example.labelled))).encode())
    return digest.hexdigest()
