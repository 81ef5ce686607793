"""How the demo's run fits itself to a machine."""

from __future__ import annotations

import pytest

from sordino.training.demo import FEWEST_STEPS, MOST_STEPS, heldout_tokens, steps_for


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
