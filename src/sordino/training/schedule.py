"""What each step of a run does, as a function of its number and the settings: the learning rate, and which examples it sees;
and how many steps fit into a time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import torch

from sordino.errors import ConfigError
from sordino.texts.example_store import Example, tokens_of
from sordino.training.calibration import EPOCHS, FEWEST_STEPS, MINUTES
from sordino.training.config import TrainConfig
from sordino.training.judging import PASSES_A_STEP, POSITIONS_A_GENERATED_TOKEN


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


def answer_rows(config: TrainConfig) -> int:
    """How many of the model's own answers a step sees, beside the texts."""
    return math.ceil(config.answers * config.batch)


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


def run_seconds(steps: int, config: TrainConfig, step_seconds: float, evaluation_seconds: float) -> float:
    """The training's length: its steps, its evaluations (one more at the start) and its samples."""
    evaluations = steps // config.evaluation_interval + 1
    a_step = PASSES_A_STEP * ((config.batch + answer_rows(config)) * config.row_tokens + config.tokens)
    samples = steps // config.sample_interval * config.sample_tokens * POSITIONS_A_GENERATED_TOKEN / a_step
    return (steps + samples) * step_seconds + evaluations * evaluation_seconds


def steps_wanted(config: TrainConfig, train_tokens: int) -> int:
    """How many of the settings' steps texts of so many tokens are worth: as many as read them EPOCHS times."""
    epochs = math.ceil(EPOCHS * train_tokens / (config.batch * config.row_tokens))
    return min(config.steps, max(FEWEST_STEPS, epochs))


def chosen_steps(wanted: int, seconds: Callable[[int], float], step_seconds: float) -> int:
    """The wanted steps, or as many as fit into MINUTES: at least FEWEST_STEPS, and a multiple of ten, so that small differences
    in speed change nothing. seconds: how long a run of so many steps takes.
    """
    if seconds(wanted) <= MINUTES * 60:
        return wanted
    fit = _most_within(MINUTES, seconds, step_seconds)
    return min(wanted, max(FEWEST_STEPS, fit - fit % 10))


def steps_within(minutes: float, seconds: Callable[[int], float], step_seconds: float) -> int:
    """The most steps whose whole run fits into `minutes`. seconds: how long a run of so many steps takes.

    Raises ConfigError where not one step fits.
    """
    steps = _most_within(minutes, seconds, step_seconds)
    if steps < 1:
        raise ConfigError(
            "not one step fits into the time",
            where="--minutes",
            # Rounded up: what is advised has to suffice.
            expected=f"at least {math.ceil(seconds(1) / 0.6) / 100:g}",
            got=minutes,
            do="give more minutes, or lower --batch",
        )
    return steps


def _most_within(minutes: float, seconds: Callable[[int], float], step_seconds: float) -> int:
    # How often a run evaluates, and how it is measured, depends on its steps, so one more step can make it shorter: bisect, then
    # walk back.
    low, high = 0, max(1, int(minutes * 60 / step_seconds))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if seconds(middle) <= minutes * 60 else (low, middle - 1)
    steps = low
    while steps > 0 and seconds(steps) > minutes * 60:
        steps -= 1
    return steps
