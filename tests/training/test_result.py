"""What a run leaves besides the soft prompt, and that the soft prompt survives what goes wrong with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sordino import formats
from sordino.errors import BadInput, DataError, OutOfMemory
from sordino.evaluation.analysis.inspection import ATTENTION_WINDOWS, TARGETS, affordable
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.training import execute, result
from sordino.training.checkpoint import FILE
from sordino.training.config import TrainConfig
from sordino.training.events import Evaluated, OnEvent, RunEvent, Warned, nobody
from sordino.training.execute import follow, read_texts
from sordino.training.job import Job
from sordino.training.result import INSPECTION_BUDGET, TrainResult, after_training, measured_result, sample_pairs
from sordino.training.run import TextPaths
from tests.tiny_models import tiny_base

LOG = "The keeper wrote of the lamp and the sea, and of the ships that went by in the fog. "
CONFIG = TrainConfig(
    tokens=4, steps=4, batch=2, row_tokens=32, init="vocab", sample_tokens=4, validation_tokens=64, patience=0
)
USUAL = after_training(CONFIG)
QUICK = replace(
    USUAL,
    config=replace(USUAL.config, row_tokens=32, limit=128, excerpt_tokens=(8, 16), resamples=100),
    off_domain=False,
)


@pytest.fixture(scope="module")
def base() -> Any:
    return tiny_base("llama", dtype=torch.float32)


def job_in(folder: Path, **changes: Any) -> Job:
    (folder / "texts").mkdir()
    for number in range(7):
        (folder / "texts" / f"{number}.txt").write_text(f"Day {number}. " + LOG * (number + 3))
    return Job(TextPaths((folder / "texts",)), folder / "v.zip", "tiny", Metadata(name="v"), CONFIG, **changes)


def executed(job: Job, base: Any, on_event: OnEvent = nobody) -> TrainResult:
    made = follow(job, read_texts(job, base), judging=QUICK, on_event=on_event)
    assert made is not None
    return made


def warnings_of(job: Job, base: Any) -> str:
    events: list[RunEvent] = []
    executed(job, base, events.append)
    return "; ".join(event.message for event in events if isinstance(event, Warned))


def test_a_run_leaves_a_measured_file_and_a_report(tmp_path: Path, base: Any) -> None:
    job = job_in(tmp_path)
    events: list[RunEvent] = []
    made = executed(job, base, events.append)
    stored = formats.read(job.out)
    assert stored.content_hash == made.prompt.content_hash
    assert (made.file, made.folder) == (job.out, job.folder)
    assert [event.report for event in events if isinstance(event, Evaluated)] == [made.report]
    assert stored.metadata.heldout["tokens"] > 0
    assert len(stored.metadata.samples) == 1
    page = (job.folder / "report.html").read_text(encoding="utf-8")
    assert "16 tokens of the training text" in page
    assert "The voice arriving" in page
    for part in (
        "loss if left out",
        "percentile of words",
        "On the held-out texts",
        "of their attention",
        "Of each virtual token",
    ):
        assert part in page, part


def test_no_samples_keeps_them_out_of_the_file_only(tmp_path: Path, base: Any) -> None:
    job = job_in(tmp_path, samples=False)
    executed(job, base)
    assert formats.read(job.out).metadata.samples == ()
    assert "With and without" in (job.folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("trouble", [DataError("the held-out texts are too short"), KeyboardInterrupt()])
def test_trouble_in_measuring_does_not_cost_the_soft_prompt(tmp_path, base, monkeypatch, trouble) -> None:
    def fail(*_: object, **__: object) -> None:
        raise trouble

    monkeypatch.setattr(result, "evaluate", fail)
    job = job_in(tmp_path)
    assert "held-out results" in warnings_of(job, base)
    assert formats.read(job.out).metadata.heldout == {}


@pytest.mark.parametrize("trouble", [OutOfMemory("memory ran out in measuring"), KeyboardInterrupt()])
def test_trouble_in_looking_inside_does_not_cost_the_report(tmp_path, base, monkeypatch, trouble) -> None:
    def fail(*_: object, **__: object) -> None:
        raise trouble

    monkeypatch.setattr(result, "depth_of", fail)
    job = job_in(tmp_path)
    assert "inside" in warnings_of(job, base)
    page = (job.folder / "report.html").read_text(encoding="utf-8")
    assert "nearest words" in page
    assert "loss if left out" not in page


@pytest.mark.parametrize("tokens", [1, 20, 40])
def test_a_look_inside_is_a_small_part_of_a_five_minute_run(tokens: int) -> None:
    targets, row = affordable(tokens, INSPECTION_BUDGET), after_training(TrainConfig()).config.row_tokens
    read = (tokens + 2) * (tokens + targets)
    looked_at = min(ATTENTION_WINDOWS, -(-targets // row)) * (tokens + row)
    steps = 5 * 60 / 2.8
    forward_and_back = 2 * steps * 4 * 128
    assert targets >= TARGETS[0]
    assert (read + looked_at) / forward_and_back < 0.05


@pytest.mark.parametrize("tokens", [60, 2000])
def test_what_a_long_prompt_has_inside_is_left_to_inspect(tokens: int) -> None:
    assert affordable(tokens, INSPECTION_BUDGET) == 0


def test_the_report_on_a_long_prompt_says_what_was_not_measured(tmp_path, base, monkeypatch) -> None:
    monkeypatch.setattr(result, "INSPECTION_BUDGET", 100)
    job = job_in(tmp_path)
    executed(job, base)
    page = (job.folder / "report.html").read_text(encoding="utf-8")
    assert "was not measured" in page
    assert "percentile of words" in page
    assert "loss if left out" not in page


def test_trouble_with_the_samples_does_not_cost_the_soft_prompt(tmp_path, base, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OutOfMemory("memory ran out in writing")

    monkeypatch.setattr(result, "complete", fail)
    job = job_in(tmp_path)
    assert "there are no samples: memory ran out" in warnings_of(job, base)
    assert formats.read(job.out).metadata.samples == ()


def test_a_result_is_measured_in_no_more_memory_than_it_was_trained_in() -> None:
    config = after_training(replace(CONFIG, pass_tokens=300, row_tokens=64)).config
    assert (config.pass_tokens, config.row_tokens) == (300, 64)
    assert after_training(replace(CONFIG, row_tokens=500)).config.row_tokens == 128


def test_nothing_held_out_is_nothing_measured() -> None:
    prepared: Any = SimpleNamespace(splits=SimpleNamespace(heldout=()))
    assert measured_result(prepared, SoftPrompt(np.ones((1, 2), dtype=np.float32)), QUICK, nobody) is None


def test_a_file_that_appears_while_training_is_not_overwritten(tmp_path, base, monkeypatch) -> None:
    job = job_in(tmp_path)
    train = execute._train

    def meanwhile(*arguments: Any, **more: Any) -> Any:
        job.out.write_text("mine")
        return train(*arguments, **more)

    monkeypatch.setattr(execute, "_train", meanwhile)
    with pytest.raises(BadInput, match="--resume"):
        executed(job, base)
    assert job.out.read_text() == "mine"


def test_a_new_run_is_not_confused_by_an_old_checkpoint(tmp_path, base, monkeypatch) -> None:
    """Killed before its first checkpoint, it would otherwise be resumed from the older run's."""
    job = job_in(tmp_path)
    job.folder.mkdir()
    (job.folder / FILE).write_text("of an older run")

    def killed(*_: object, **__: object) -> None:
        raise SystemExit(9)

    monkeypatch.setattr(execute, "_train", killed)
    with pytest.raises(SystemExit):
        executed(job, base)
    assert not (job.folder / FILE).exists()


def test_an_empty_text_has_no_continuation_without_a_bos(base: Any) -> None:
    """With the soft prompt there is something to begin from; without it, on this model, there is not."""
    prompt = SoftPrompt(np.ones((2, base.d_model), dtype=np.float32))
    (empty, given) = sample_pairs(base, prompt, ["", "The"], seed=0, tokens=3)
    assert empty["without"] == ""
    assert all((empty["with"], given["with"], given["without"]))
