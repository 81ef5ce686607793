"""What each step of a run does, as a function of its number and the settings: the learning rate, and which examples it sees."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch

from sordino.texts.example_store import Example, tokens_of
from sordino.training.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of step `step` (from 0), in units of the embedding RMS: linear warm-up over a share `warmup` of the
    steps, then a cosine to the share `final_lr` of it.
    """
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return config.lr * (step + 1) / warm
    done = (step - warm) / max(1, config.steps - warm)
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))


def batch_at(examples: Sequence[Example], step: int, config: TrainConfig) -> list[Example]:
    """The examples of step `step`: epochs one after another, each in an order of its own that depends on seed and epoch alone."""
    # With fewer examples than a batch holds, a step sees each of them once.
    count = min(config.batch, len(examples))
    chosen = []
    order: list[int] = []
    for at in range(step * count, (step + 1) * count):
        epoch, place = divmod(at, len(examples))
        if not order or place == 0:
            order = _order(len(examples), epoch, config.seed)
        chosen.append(examples[order[place]])
    return chosen


def spread_within(examples: Sequence[Example], tokens: int) -> list[Example]:
    """Examples spread evenly over the set, about `tokens` in all: an evaluation must stay cheap beside the steps."""
    return list(examples[:: max(1, math.ceil(tokens_of(examples) / tokens))])


def hash_of(examples: Sequence[Example]) -> str:
    """SHA-256 of the examples in their order, which decides what each step sees."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((list(example.ids), list(example.labelled))).encode())
    return digest.hexdigest()


def _order(count: int, epoch: int, seed: int) -> list[int]:
    # Modulo what a generator takes: a seed may be as large as a time stamp.
    random = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order: list[int] = torch.randperm(count, generator=random).tolist()
    return order
