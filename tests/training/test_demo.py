"""How the demo's run fits itself to a machine."""

from __future__ import annotations

import pytest

from sordino.training.config import TrainConfig
from sordino.training.demo import (
    FEWEST_STEPS,
    MOST_STEPS,
    demo_judging,
    heldout_tokens,
    minutes_afterwards,
    steps_for,
)
from sordino.training.events import Cost
from sordino.training.judging import RunSize


@pytest.mark.parametrize(
    ("minutes", "step_seconds", "besides", "steps"),
    [
        (2.5, 2.0, 30, 60),
        (2.5, 2.0, 0, 75),
        (2.5, 50.0, 300, FEWEST_STEPS),
        (2.5, 0.01, 1, MOST_STEPS),
        (5, 2.0, 30, 135),
    ],
)
def test_the_number_of_steps_follows_the_machine(minutes, step_seconds, besides, steps) -> None:
    assert steps_for(minutes, step_seconds, besides) == steps


def test_slow_machines_measure_fewer_tokens() -> None:
    assert heldout_tokens(trained_a_second=200, conditions=7) == 1714
    assert heldout_tokens(trained_a_second=1, conditions=7) == 512
    assert heldout_tokens(trained_a_second=1e6, conditions=7) == 8192


def test_the_time_after_the_training_grows_with_a_step_s_and_a_sample_s() -> None:
    config = TrainConfig()
    size = RunSize(60, config.batch * config.row_tokens, 4096, 8192)

    def minutes(step: float, sample: float) -> float:
        cost = Cost(step, 1.0, 60, 0.0, 0, 0)
        return minutes_afterwards(demo_judging(config, 1.0), config, size, cost, sample)

    assert 0 < minutes(1.0, 0.0) < 5
    assert minutes(2.0, 0.0) == pytest.approx(2 * minutes(1.0, 0.0))
    assert minutes(1.0, 48.0) - minutes(1.0, 0.0) == pytest.approx(2 * 70 / 60)
