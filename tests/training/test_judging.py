"""What a measurement costs and how much of a run's time it may take, counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sordino.training.config import TrainConfig
from sordino.training.judging import SHARE, RunSize, judging_of, positions, work

CONFIG = TrainConfig()
# 4 x 128 and the soft prompt.
SIZE = RunSize(300, 532, 50_000, 8192)


@pytest.mark.parametrize("steps", [10, 13, 20, 40, 60, 85, 107, 150, 300, 5000])
def test_a_quick_measurement_takes_a_quarter_of_the_training_at_most(steps: int) -> None:
    size = replace(SIZE, steps=steps)
    judging = judging_of(CONFIG, size)
    assert work(judging, CONFIG, size) <= SHARE * steps * size.step_work
    assert {"samples", "heldout"} <= judging.parts
    assert judging.config.limit >= 256


def test_longer_runs_are_measured_better() -> None:
    found = [judging_of(CONFIG, replace(SIZE, steps=steps)) for steps in (10, 20, 40, 80, 160, 320)]
    assert [len(one.parts) for one in found] == sorted(len(one.parts) for one in found)
    assert found[-1] == judging_of(replace(CONFIG, measure="full"), SIZE)
    conditions = [len(one.config.excerpt_tokens) + one.most_instructions for one in found]
    assert conditions == sorted(conditions)


def test_a_very_short_run_is_measured_on_the_fewest_tokens_that_say_something() -> None:
    judging = judging_of(CONFIG, replace(SIZE, steps=1))
    assert (judging.config.limit, judging.most_instructions) == (256, 1)


def test_full_does_not_look_at_the_time() -> None:
    full = judging_of(replace(CONFIG, measure="full"), replace(SIZE, steps=1))
    assert (full.config.limit, full.most_instructions, len(full.parts)) == (2048, 3, 5)


@pytest.mark.parametrize("steps", [40, 60, 85, 150, 300])
def test_runs_of_the_usual_length_say_how_much_of_the_gain_other_text_leaves(steps: int) -> None:
    judging = judging_of(CONFIG, replace(SIZE, steps=steps))
    assert judging.config.distance is not None
    assert judging.config.distance.between == ("foreign",)
    assert judging.config.distance.distances[-1] == (768 if steps >= 150 else 256)


def test_what_the_context_has_no_room_for_is_not_measured() -> None:
    def distances(context: int, **changes: int) -> tuple[int, ...] | None:
        found = judging_of(CONFIG, replace(SIZE, context=context, **changes)).config.distance
        return found and found.distances

    assert [distances(context) for context in (300, 512, 1024)] == [None, (0, 256), (0, 256, 768)]
    assert distances(8192, heldout=100) is None


def test_a_kv_prompt_is_not_inspected_one_by_one() -> None:
    kv = replace(CONFIG, kind="kv")
    assert "inspection" not in positions(judging_of(kv, SIZE), kv, SIZE)


def test_none_costs_nothing() -> None:
    none = replace(CONFIG, measure="none")
    assert work(judging_of(none, SIZE), none, SIZE) == 0


def test_what_is_not_there_costs_nothing() -> None:
    judging = judging_of(CONFIG, SIZE)
    assert set(positions(judging, CONFIG, replace(SIZE, heldout=0))) == {"samples", "inspection"}
    few, many = (positions(judging, CONFIG, replace(SIZE, heldout=tokens))["heldout"] for tokens in (500, 5000))
    assert few < many / 3


def test_a_result_is_measured_in_no_more_memory_than_it_was_trained_in() -> None:
    config = judging_of(replace(CONFIG, pass_tokens=300, row_tokens=64), SIZE).config
    assert (config.pass_tokens, config.row_tokens) == (300, 64)
    assert judging_of(replace(CONFIG, row_tokens=500), SIZE).config.row_tokens == 128
