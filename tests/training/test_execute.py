"""A run as a function: its events in order, its result, nothing printed; stopped and resumed it gives the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sordino.errors import DataError
from sordino.prompts.soft_prompt import Metadata
from sordino.training.calibration import Calibration
from sordino.training.config import TextPaths, TrainConfig
from sordino.training.events import RunEvent, Step
from sordino.training.execute import dry_run, execute
from sordino.training.group import Group, execute_group
from sordino.training.job import Job, stored_job
from tests.training.runs import days, write_texts

CONFIG = TrainConfig(tokens=4, steps=4, batch=2, row_tokens=32, init="vocab", sample_tokens=4, validation_tokens=64)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts", days())


def job_of(texts: Path, name: str = "v") -> Job:
    return Job(TextPaths((texts,)), texts.with_name(f"{name}.zip"), "tiny", Metadata(name=name), CONFIG)


def kinds(events: list[RunEvent]) -> list[str]:
    """Their names, of several alike in a row one."""
    names = [type(event).__name__ for event in events if type(event).__name__ != "Working"]
    return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]


def test_a_run_tells_by_events_and_prints_nothing(texts: Path, base: Any, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[RunEvent] = []
    made = execute(job_of(texts), base, Calibration(find_lr=True), on_event=events.append)
    assert made is not None
    assert made.file.is_file()
    assert made.report is not None
    assert made.prompt.metadata.heldout["tokens"] > 0
    found = kinds(events)
    assert found[:5] == ["TextsRead", "Cost", "LearningRates", "Started", "Validation"]
    # Warned: other programs do not hold it.
    assert found[-6:] == ["Finished", "Evaluated", "Disclosed", "Warned", "PromptWritten", "ReportWritten"]
    assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3, 4]
    assert "".join(capsys.readouterr()) == ""


def test_a_stopped_run_goes_on_to_the_same_prompt(texts: Path, base: Any) -> None:
    whole = execute(job_of(texts, "whole"), base)
    asked = iter((False, True))
    assert execute(job_of(texts, "cut"), base, should_stop=lambda: next(asked)) is None
    assert not texts.with_name("cut.zip").exists()
    cut = execute(stored_job(texts.with_name("cut.run")), base, resume=True)
    assert whole is not None
    assert cut is not None
    assert cut.prompt.content_hash == whole.prompt.content_hash


def test_an_embedding_prompt_and_a_kv_prompt_of_one_name_have_a_folder_each(texts: Path) -> None:
    job = job_of(texts, "voice")
    both = (job, replace(job, out=job.out.with_name("voice.kv.zip")))
    assert [one.folder.name for one in both] == ["voice.run", "voice.kv.run"]


def test_a_dry_run_writes_nothing(texts: Path, base: Any) -> None:
    events: list[RunEvent] = []
    dry_run(job_of(texts), base, on_event=events.append)
    assert kinds(events) == ["TextsRead", "Cost"]
    assert list(texts.parent.iterdir()) == [texts]


def test_runs_of_a_group_tell_their_names(texts: Path, base: Any) -> None:
    jobs = {name: job_of(texts, name) for name in ("a", "b")}
    named: list[tuple[str, RunEvent]] = []
    made = execute_group(
        Group(jobs, texts.with_name("together.run")), base, on_event=lambda name, event: named.append((name, event))
    )
    assert made is not None
    assert [result.file.name for result in made.values()] == ["a.zip", "b.zip"]
    assert [name for name, event in named if isinstance(event, Step)] == ["a", "b"] * 4
    short = texts.with_name("short.txt")
    short.write_text("Too short.")
    with pytest.raises(DataError, match="--prompt c"):
        execute_group(Group({"c": job_of(short, "c")}, texts.with_name("c.run")), base)
