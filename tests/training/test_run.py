"""How many steps a run takes where nobody says it, and how long it takes, with the measuring counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sordino.errors import ConfigError
from sordino.prompts.soft_prompt import Metadata
from sordino.training import run
from sordino.training.calibration import EPOCHS, FEWEST_STEPS, MINUTES, Calibration, calibration_of
from sordino.training.config import ReadingConfig, TextPaths, TrainConfig
from sordino.training.events import Cost, RunEvent, Started
from sordino.training.execute import execute
from sordino.training.job import SETTINGS, Job, job_from, store, stored_job
from sordino.training.judging import SHARE
from sordino.training.reading import read_sample
from sordino.training.run import estimate
from sordino.training.schedule import chosen_steps, run_seconds, steps_wanted, steps_within
from tests.training.runs import LOG, days, write_texts

CONFIG = TrainConfig(tokens=4, batch=2, row_tokens=32, init="vocab", sample_tokens=4, validation_tokens=64)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    texts = TextPaths((write_texts(tmp_path / "texts", days()),))
    return Job(texts, tmp_path / "v.zip", "tiny", Metadata(name="v"), CONFIG)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every step takes 2 s and every evaluation 10 s."""
    monkeypatch.setattr(run, "_measured_seconds", lambda runs, strategy: (2.0, 10.0))


def test_minutes_count_the_evaluations_that_were_asked_for() -> None:
    for config in (TrainConfig(), TrainConfig(evaluate_every=1), TrainConfig(evaluate_every=7, sample_every=3)):

        def seconds(steps: int, config: TrainConfig = config) -> float:
            return run_seconds(steps, replace(config, steps=steps), 2.0, 10.0)

        assert 300 - 60 < seconds(steps_within(5, seconds, 2.0)) <= 300


def test_of_more_text_a_sample_is_read_and_the_same_when_the_run_goes_on(job: Job) -> None:
    with (job.texts.data[0] / "many.jsonl").open("w") as file:
        for number in range(4000):
            file.write(json.dumps({"text": f"Entry {number}. " + LOG * 4}) + "\n")
    job = replace(job, texts=replace(job.texts, most_text=1))
    read = read_sample(job.texts, job.texts.data, (), 0)
    assert "a sample by the seed" in read.notes[-1]
    assert 1_000_000 <= sum(piece.size for piece in read.pieces) < 1_010_000
    job.folder.mkdir()
    store(job, "")
    again = job_from(job.folder, overwrite=False).texts
    assert read_sample(again, again.data, (), 0) == read


def test_a_run_from_before_samples_reads_all_of_its_texts(job: Job) -> None:
    job.folder.mkdir()
    store(job, "")
    path = job.folder / SETTINGS
    stored = json.loads(path.read_text())
    assert stored.pop("most_text") == ReadingConfig.most_text == 32
    path.write_text(json.dumps(stored))
    assert job_from(job.folder, overwrite=False).texts.most_text == 1_000_000


@pytest.mark.parametrize("most", [0, 1_000_001])
def test_a_sample_has_a_size(most: int) -> None:
    with pytest.raises(ConfigError, match="--most-text"):
        ReadingConfig(most_text=most)


def test_minutes_count_the_measuring(job: Job, base: Any, clock: None) -> None:
    prepared = run.prepare(base, job.config, job.texts)
    cost = estimate([prepared], Calibration(minutes=5))
    assert 0.8 * 300 < cost.seconds <= 300
    assert 0 < cost.measuring_seconds <= SHARE * (cost.seconds - cost.measuring_seconds)
    unmeasured = replace(prepared, config=replace(prepared.config, measure="none"))
    free = estimate([unmeasured], Calibration(minutes=5))
    assert free.measuring_seconds == 0
    assert free.steps > cost.steps


def test_too_little_time_for_one_step_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"at least 0\.17"):
        steps_within(0.1, lambda steps: 10.0 * steps, 10.0)


@pytest.mark.parametrize("second", [0.1, 2.0, 9.0])
def test_the_time_that_is_advised_suffices(second: float) -> None:
    def seconds(steps: int) -> float:
        return second * steps

    with pytest.raises(ConfigError) as caught:
        steps_within(1e-6, seconds, second)
    assert steps_within(float(caught.value.expected.split()[-1]), seconds, second) >= 1


def test_the_texts_say_how_many_steps_they_are_worth() -> None:
    config = TrainConfig()
    assert steps_wanted(config, 450_000) == 300
    assert steps_wanted(config, 100) == FEWEST_STEPS
    assert steps_wanted(config, 100 * 512 // EPOCHS) == 100
    assert steps_wanted(replace(config, steps=20), 100) == 20


@pytest.mark.parametrize(
    ("wanted", "step_seconds", "steps"),
    [
        (300, 0.1, 300),
        (300, 2.8, 100),
        (300, 3.0, 100),
        (300, 3.01, 90),
        (60, 2.8, 60),
        (300, 60.0, FEWEST_STEPS),
        (20, 60.0, 20),
    ],
)
def test_steps_are_chosen_from_texts_and_time(wanted: int, step_seconds: float, steps: int) -> None:
    assert chosen_steps(wanted, lambda steps: steps * step_seconds, step_seconds) == steps
    if steps > FEWEST_STEPS:
        assert steps * step_seconds <= MINUTES * 60


def test_a_chosen_number_is_in_the_events_in_the_file_and_in_the_run_that_goes_on(
    job: Job, base: Any, clock: None
) -> None:
    events: list[RunEvent] = []
    asked = iter((False, False, True))
    calibration = calibration_of((), {})
    assert execute(job, base, calibration, on_event=events.append, should_stop=lambda: next(asked)) is None
    (cost,) = (event for event in events if isinstance(event, Cost))
    assert FEWEST_STEPS <= cost.steps < cost.wanted_steps <= 300
    assert cost.seconds <= MINUTES * 60 < cost.wanted_seconds
    assert [event.steps for event in events if isinstance(event, Started)] == [cost.steps]
    going_on = stored_job(job.folder)
    assert going_on.config.steps == cost.steps
    made = execute(going_on, base, resume=True)
    assert made is not None
    assert made.prompt.metadata.training["steps"] == cost.steps


def test_a_given_number_is_exact() -> None:
    assert not calibration_of(("steps",), {}).choose_steps
    assert not calibration_of((), {"minutes": 2}).choose_steps
    assert calibration_of(("lr",), {}).choose_steps
    with pytest.raises(ConfigError, match="both --steps and --minutes"):
        calibration_of(("steps",), {"minutes": 2})
