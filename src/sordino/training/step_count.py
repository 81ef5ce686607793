"""How long a run takes, and how many steps fit into a time."""

from __future__ import annotations

import math
from collections.abc import Callable

from sordino.errors import ConfigError
from sordino.training.calibration import EPOCHS, FEWEST_STEPS, MINUTES
from sordino.training.config import TrainConfig
from sordino.training.judging import PASSES_A_STEP, POSITIONS_A_GENERATED_TOKEN


def run_seconds(steps: int, config: TrainConfig, step_seconds: float, evaluation_seconds: float) -> float:
    """The training's length: its steps, its evaluations (one more at the start) and its samples."""
    evaluations = steps // config.evaluation_interval + 1
    a_step = PASSES_A_STEP * (config.batch * config.row_tokens + config.tokens)
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
