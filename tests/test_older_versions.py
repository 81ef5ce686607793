"""Files that older versions wrote are read, listed, resumed and continued: libraries, checkpoints, stories, the queue, settings.

`tests/older_versions/VERSION.tar.xz` is a user's home, made by that version's own commands (`tests/older_versions/make.py`). These
tests use commands and routes alone, which stay while modules move.
"""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.cli.commands import ok, refused
from tests.older_versions.make import PLACE, TEXT_FILES, environment
from tests.server.process import started

ARCHIVES = sorted(Path(__file__).with_name("older_versions").glob("*.tar.xz"))
# The weights that a run ends with: another processor rounds otherwise, and some hundred steps add that up.
TOLERANCE = 1e-3


def test_there_is_something_to_read() -> None:
    assert [path.name for path in ARCHIVES] == ["0.1.0.tar.xz"]
    assert sum(path.stat().st_size for path in ARCHIVES) < 1_000_000


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user of an older version, in which everything runs."""
    home = tmp_path.resolve() / "home"
    with tarfile.open(request.param) as tar:
        tar.extractall(home, filter="data")
    for path in home.rglob("*"):
        if path.is_file() and path.suffix in TEXT_FILES:
            path.write_bytes(path.read_bytes().replace(PLACE.encode(), str(home).encode()))
    monkeypatch.delenv("SORDINO_LIBRARY")
    monkeypatch.delenv("SORDINO_CACHE", raising=False)
    for name, value in environment(home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home / "work")
    return home


def matrix_of(prompt: Path, folder: Path) -> Any:
    ok("convert", prompt, folder / f"{prompt.stem}.npy")
    return np.load(folder / f"{prompt.stem}.npy")


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def test_the_library(home: Path) -> None:
    listed = ok("list")
    assert all(name in listed for name in ("keeper", "village-gazette", "fog", "from-peft", "two"))
    assert "port-dolor" not in listed, "what the user removed does not come back"
    library = home / "data/sordino/soft_prompts"
    assert (library / ".trash/port-dolor.zip").is_file()
    shown = json.loads(ok("show", "fog", "--json", "--model", home / "models/tiny"))
    assert (shown["author"], shown["licence"], shown["tags"], shown["rating"]) == (
        "Ines",
        "CC0-1.0",
        ["sea", "diary"],
        "general",
    )
    assert shown["fit"]["kind"] == "exact"
    assert json.loads(ok("show", "from-peft", "--json"))["description"] == "Made of a PEFT folder."
    ok("edit", "fog", "--description", "Of the new version.")
    assert json.loads(ok("show", "fog", "--json"))["training"] == shown["training"]


def test_soft_prompts_write_as_the_file_that_they_were_made_from(home: Path) -> None:
    def written(*prompt: str) -> str:
        flags = ("--model", home / "models/tiny", "--max-tokens", 12, "--temperature", 0)
        return ok("generate", "The keeper", *(part for name in prompt for part in ("--soft-prompt", name)), *flags)

    whole = written("whole.zip")
    assert whole != written()
    assert {written(same) for same in ("fog", "from-peft", "whole-peft")} == {whole}
    for mixture in ("two", "joint.mix.zip"):
        written(mixture)


def test_a_converted_model_is_not_converted_again(home: Path) -> None:
    converted = list((home / "cache/sordino/converted").iterdir())
    said = ok("generate", "The keeper", "--model", home / "models/tiny.gguf", "--max-tokens", 2)
    assert "converting" not in said
    assert list((home / "cache/sordino/converted").iterdir()) == converted


def test_a_run_goes_on_to_the_matrix_of_one_that_never_stopped(home: Path, tmp_path: Path) -> None:
    before = events(home / "work/half.run", "step")
    assert 0 < len(before) < 160
    said = ok("train", "--resume", "half.run")
    assert "Written:" in said
    steps = events(home / "work/half.run", "step")
    assert [step["step"] for step in steps] == list(range(1, 161))
    assert steps[: len(before)] == before
    resumed, whole = (matrix_of(home / "work" / name, tmp_path) for name in ("half.zip", "whole.zip"))
    assert np.linalg.norm(resumed - whole) <= TOLERANCE * np.linalg.norm(whole)
    assert (home / "work/half.run/report.html").is_file()


def test_a_finished_run_is_known_as_one(home: Path) -> None:
    # The archive leaves this one out.
    (home / "work/whole.run/report.html").touch()
    assert "whole.zip" in refused("train", "--resume", "whole.run")
    assert "half.run" in refused("train", home / "texts/log", "--model", home / "models/tiny", "--out", "half.zip")


def test_several_soft_prompts_go_on_together(home: Path) -> None:
    before = len(events(home / "work/voices/poe.run", "step"))
    ok("train", "--resume", "voices/together.run")
    for name in ("poe", "austen"):
        steps = events(home / f"work/voices/{name}.run", "step")
        assert len(steps) == 160 > before
        assert json.loads(ok("show", f"voices/{name}.zip", "--json"))["name"] == name


def test_a_sweep_goes_on_and_keeps_what_was_measured(home: Path) -> None:
    measured = json.loads((home / "work/sweep/1-tiny/results.json").read_bytes())
    # There was one kind, which results name now.
    measured["runs"] = [run | {"choice": run["choice"] | {"kind": "embedding"}} for run in measured["runs"]]
    said = ok("sweep", "--resume", "sweep")
    assert "Winner:" in said
    results = json.loads((home / "work/sweep/results.json").read_bytes())
    assert results["models"][0] == measured
    assert [len(model["runs"]) for model in results["models"]] == [2, 2]
    assert (home / "work/sweep/winner.zip").is_file()


@pytest.fixture
def page(home: Path) -> Iterator[httpx.Client]:
    """The page of a server that starts as a user's does: nothing is said, all is remembered."""
    with (
        started("--runner=torch", "--port=0", env={"SORDINO_LIBRARY": "", **environment(home)}) as server,
        httpx.Client(base_url=server.url(), timeout=60) as client,
    ):
        yield client


def answer(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.slow
def test_the_page_finds_model_default_stories_and_runs(home: Path, page: httpx.Client) -> None:
    state = answer(page.get("/ui/models"))
    assert state["current"], "the model that was served last is served again"
    default = answer(page.get("/api/v1/config/soft_prompt"))
    assert default["value"].startswith("fog")
    _stories(page)
    _queue(page)


def _stories(page: httpx.Client) -> None:
    titles = {story["id"]: (story["title"], story["is_chat"]) for story in answer(page.get("/ui/stories"))}
    assert titles == {"story-1": ("Fog", False), "chat-1": ("At night", True)}
    story = answer(page.get("/ui/stories/story-1"))
    assert (story["memory"], story["revision"]) == ("1860.", 2)
    chat = answer(page.get("/ui/stories/chat-1"))
    assert (chat["chat"][1]["content"], chat["character"]["name"]) == ("The keeper.", "Keeper")
    saved = {"title": "Fog", "text": story["text"] + "More.", "memory": "1860.", "revision": story["revision"]}
    assert answer(page.put("/ui/stories/story-1", json=saved))["revision"] == 3
    assert page.put("/ui/stories/story-1", json=saved).status_code == 409


def _queue(page: httpx.Client) -> None:
    jobs = {job["name"]: job for job in answer(page.get("/ui/jobs"))}
    assert set(jobs) == {"done", "failed", "stopped", "running", "waiting"}, "drafts are left out"
    assert all(job["texts"] == ["a.txt", "folder/b.txt"] for job in jobs.values())
    ids = {name: job["id"] for name, job in jobs.items()}
    assert jobs["done"]["state"] == "done"
    assert jobs["done"]["settings"]["steps"] == 8
    assert page.get(f"/ui/jobs/{ids['done']}/report").status_code == 200
    assert page.get(f"/ui/jobs/{ids['done']}/file").content[:2] == b"PK"
    assert answer(page.post(f"/ui/jobs/{ids['done']}/install", json={"name": "kept"})) == {"id": "kept"}
    assert "nowhere.zip" in jobs["failed"]["error"]
    assert jobs["stopped"]["state"] == "stopped"
    assert jobs["stopped"]["checkpoint"]
    # The one that ran when the power failed is over; what waited after it is begun.
    _until(page, ids["running"], "failed")
    _until(page, ids["waiting"], "done")
    steps = len(answer(page.get(f"/ui/jobs/{ids['stopped']}"))["events"])
    answer(page.post(f"/ui/jobs/{ids['stopped']}/resume"))
    deadline = time.monotonic() + 240
    while len(answer(page.get(f"/ui/jobs/{ids['stopped']}"))["events"]) <= steps:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    answer(page.post(f"/ui/jobs/{ids['stopped']}/stop"))
    _until(page, ids["stopped"], "stopped")
    again = answer(page.post(f"/ui/jobs/{ids['done']}/again"))
    assert again["settings"] == jobs["done"]["settings"]
    assert page.delete(f"/ui/jobs/{ids['done']}").status_code == 200


def _until(page: httpx.Client, job: str, state: str) -> None:
    deadline = time.monotonic() + 240
    while (known := answer(page.get(f"/ui/jobs/{job}")))["state"] != state:
        assert time.monotonic() < deadline, known
        assert known["state"] not in ("done", "failed", "stopped"), known
        time.sleep(0.2)
