"""What each step of a training does, as a function of its number: the learning rate, and which examples it sees."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from sordino.texts.examples import Example


def rate_at(step: int, *, steps: int, lr: float, warmup: float, final_lr: float) -> float:
    """The learning rate of step `step` (from 0), in units of the embedding RMS: linear warm-up over a share `warmup` of the
    steps, then a cosine to the share `final_lr` of it.
    """
    warm = max(1, round(warmup * steps))
    if step < warm:
        return lr * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return lr * (final_lr + (1 - final_lr) * 0.5 * (1 + math.cos(math.pi * done)))


def places_at(step: int, *, total: int, batch: int, seed: int) -> list[int]:
    """Which of `total` examples step `step` sees: epochs one after another, each in an order of its own that depends on seed and
    epoch alone.
    """
    # Not more than there are: a step of few examples sees each of them once.
    count = min(batch, total)
    chosen = []
    order: list[int] = []
    for at in range(step * count, (step + 1) * count):
        epoch, place = divmod(at, total)
        if not order or place == 0:
            order = _order(total, epoch, seed)
        chosen.append(order[place])
    return chosen


def _order(count: int, epoch: int, seed: int) -> list[int]:
    # Modulo what a generator takes: a seed may be as large as a time stamp.
    random = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order: list[int] = torch.randperm(count, generator=random).tolist()
    return order


def spread_within(examples: Sequence[Example], tokens: int) -> list[Example]:
    """Examples spread evenly over the set, about `tokens` in all: an evaluation must stay cheap beside the steps."""
    total = sum(len(example.ids) for example in examples)
    return list(examples[:: max(1, math.ceil(total / tokens))])
