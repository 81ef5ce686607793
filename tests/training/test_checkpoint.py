"""Checkpoints that version 0.1.0 wrote are read and resumed: of a single run after its step 5, and of a group after step 9."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sordino.training.checkpoint import is_unfinished, read_group, read_header
from sordino.training.events import Finished
from sordino.training.loop import Run, RunGroup, train, train_group
from tests.training.runs import CONFIG, off, several_runs, small_base, small_set, start_of

# What 0.1.0 did, before there were such settings.
BEFORE: dict[str, Any] = {"hold": 0, "context": 0.0, "answers": 0.0}
WRITTEN = Path(__file__).parent / "written_by_0_1_0"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return Path(shutil.copytree(WRITTEN, tmp_path / "written"))


def test_a_single_run_resumes_to_what_it_would_have_become(written: Path, tmp_path: Path) -> None:
    base = small_base()
    run = Run("", small_set(base), replace(CONFIG, **BEFORE), written / "single", start_of(base))
    assert is_unfinished(run.folder)
    assert read_header(run.folder)["progress"]["step"] == 5
    *_, resumed = train(base, run, resume=True)
    (tmp_path / "whole").mkdir()
    *_, whole = train(base, Run("", small_set(base), replace(CONFIG, **BEFORE), tmp_path / "whole", start_of(base)))
    assert isinstance(resumed, Finished)
    assert isinstance(whole, Finished)
    assert off(resumed.matrix_PD, whole.matrix_PD) <= 1e-4
    assert resumed.progress.tokens == whole.progress.tokens
    lines = [(folder / "metrics.jsonl").read_text().count("\n") for folder in (run.folder, tmp_path / "whole")]
    assert lines[0] == lines[1]


def test_a_group_resumes_to_what_it_would_have_become(written: Path, tmp_path: Path) -> None:
    """Run "a" is finished and has a checkpoint of its own."""
    base = small_base()

    def results(folder: Path, *, resume: bool) -> dict[str, torch.Tensor]:
        group = RunGroup(several_runs(base, folder, **BEFORE), folder)
        events = train_group(base, group, resume=resume)
        return {name: event.matrix_PD for name, event in events if isinstance(event, Finished)}

    assert is_unfinished(written / "group")
    assert [name for name, header in read_group(written / "group").items() if header is None] == ["a"]
    resumed, whole = results(written / "group", resume=True), results(tmp_path / "whole", resume=False)
    assert resumed.keys() == whole.keys()
    for name, matrix in whole.items():
        assert off(resumed[name], matrix) <= 1e-4
