"""What the page is told of a training run."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sordino.server.page.training import one_run
from sordino.training.queue import Jobs


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


def test_a_run_without_steps_says_what_it_does(jobs: Jobs) -> None:
    job = jobs.new("", [("a.txt", b"text")])
    note = {"what": "Measuring: held-out texts", "done": 25, "total": 100, "left": 30.0}
    jobs.files.progress(job).write_text(json.dumps(note))
    assert one_run(jobs, job)["now"] is None, "nothing works on it: a file that an earlier process left"
    mine = psutil.Process(os.getpid())
    running = replace(job, asked="train", pid=mine.pid, born=mine.create_time())
    jobs.files.write(running)
    told = one_run(jobs, running)
    assert (told["state"], told["now"]) == ("running", note)


def test_the_results_come_as_the_report_has_them(jobs: Jobs) -> None:
    job = jobs.new("", [("a.txt", b"text")])
    assert one_run(jobs, job)["results"] is None
    folder = jobs.files.run_folder(job)
    folder.mkdir(parents=True)
    found = {"verdicts": ["These 20 vectors are worth 71 tokens of real text."], "heldout": [], "distance": None}
    (folder / "report.json").write_text(json.dumps(found))
    assert one_run(jobs, job)["results"] == found
    (folder / "report.json").write_text("{")
    assert one_run(jobs, job)["results"] is None


def test_a_run_may_be_begun_before_its_cost_is_known(jobs: Jobs) -> None:
    job = jobs.new("", [("a.txt", b"text")])
    assert "cost" not in jobs.measuring.state(job)
    begun = jobs.train(job, model="smollm2", name="keeper", flags=())
    assert jobs.state(begun) == "waiting"
