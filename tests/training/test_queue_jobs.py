"""Training from the page: real processes, over a tiny model."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from sordino.errors import BadInput, StorageError
from sordino.training.job_files import QueuedJob
from sordino.training.queue import Jobs
from tests.server.running import Running, running
from tests.tiny_models import saved_tiny
from tests.waiting import WAIT
from tests.waiting import until as until_true

TEXT = "The keeper wrote in the log that the lamp was clean, and that the wind had gone round to the west again. " * 30
QUICK = {"tokens": 4, "steps": 3, "batch": 2, "row_tokens": 32, "sample_every": 1, "evaluate_every": 1}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    saved_tiny(folder)
    return str(folder)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with running(tmp_path, with_page=True) as one:
        yield one


def texts(server: Running, *names: str) -> dict[str, Any]:
    files = [("files", (name, f"{name}. {TEXT}".encode())) for name in names]
    answer = httpx.post(f"{server.url}/ui/texts", files=files)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def post(server: Running, path: str, json: Any = None) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/ui/jobs/{path}", json={} if json is None else json, timeout=30)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def until(server: Running, name: str, *states: str, seconds: float = WAIT) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while True:
        told: dict[str, Any] = httpx.get(f"{server.url}/ui/jobs/{name}").json()
        if told["state"] in states:
            return told
        assert time.monotonic() < deadline, (told, httpx.get(f"{server.url}/ui/jobs/{name}/log").text)
        time.sleep(0.1)


def seen(server: Running, name: str, model: str = "", settings: Any = None) -> dict[str, Any]:
    """What came of looking at a draft's texts; looked at anew, if there are settings."""
    told: dict[str, Any] = {"busy": True}
    if settings:
        told = post(server, f"{name}/look", {"model": model, "settings": settings})
    while told["busy"]:
        time.sleep(0.1)
        told = httpx.get(f"{server.url}/ui/jobs/{name}/look").json()
    return told


def test_texts_to_a_soft_prompt_in_the_library(server: Running, model: str) -> None:
    run = texts(server, "one.txt", "folder/two.txt", "three.md")
    assert sorted(run["texts"]) == ["folder/two.txt", "one.txt", "three.md"]
    asked: dict[str, Any] = {"model": model, "settings": {**QUICK, "name": "The <b>keeper</b>"}}
    told = seen(server, run["id"], **asked)
    assert not told["error"]
    assert told["texts"]["tokens"] > 100
    assert told["cost"]["steps"] == 3
    assert httpx.get(f"{server.url}/ui/jobs").json() == []
    assert post(server, f"{run['id']}/train", asked)["state"] == "waiting"
    done = until(server, run["id"], "done", "failed")
    assert done["state"] == "done", httpx.get(f"{server.url}/ui/jobs/{run['id']}/log").text
    kinds = [event["kind"] for event in done["events"]]
    assert kinds.count("step") == 3
    assert "sample" in kinds
    assert "validation" in kinds
    later = httpx.get(f"{server.url}/ui/jobs/{run['id']}", params={"after": len(kinds)}).json()
    assert later["events"] == []
    report = httpx.get(f"{server.url}/ui/jobs/{run['id']}/report")
    assert "sandbox" in report.headers["content-security-policy"]
    assert "<b>keeper</b>" not in report.text
    assert httpx.get(f"{server.url}/ui/jobs/{run['id']}/file").content[:2] == b"PK"
    kept = post(server, f"{run['id']}/install", {"name": "mine"})
    assert kept == {"id": "mine"}
    more = texts(server, "four.txt")
    post(server, f"{more['id']}/train", {"model": model, "settings": {**QUICK, "start_from": f"run:{run['id']}"}})
    assert until(server, more["id"], "done", "failed")["state"] == "done"
    assert httpx.delete(f"{server.url}/ui/jobs/{run['id']}").status_code == 200
    assert httpx.get(f"{server.url}/ui/jobs/{run['id']}").status_code == 404


def test_runs_wait_for_each_other_stop_and_go_on(server: Running, model: str) -> None:
    first, second = texts(server, "one.txt"), texts(server, "two.txt")
    long = {
        "model": model,
        "settings": {**QUICK, "steps": 100_000, "sample_every": 100_000, "evaluate_every": 500, "patience": 0},
    }
    post(server, f"{first['id']}/train", long)
    post(server, f"{second['id']}/train", {"model": model, "settings": QUICK})
    until(server, first["id"], "running")
    until_true(lambda: httpx.get(f"{server.url}/ui/jobs/{first['id']}").json()["events"])
    assert until(server, second["id"], "waiting")
    assert httpx.delete(f"{server.url}/ui/jobs/{first['id']}").status_code == 400
    post(server, f"{first['id']}/stop")
    stopped = until(server, first["id"], "stopped")
    assert stopped["checkpoint"]
    assert until(server, second["id"], "done", "failed")["state"] == "done"
    steps = len(stopped["events"])
    post(server, f"{first['id']}/resume")
    until(server, first["id"], "running")
    until_true(lambda: len(httpx.get(f"{server.url}/ui/jobs/{first['id']}").json()["events"]) > steps)
    post(server, f"{first['id']}/stop")
    until(server, first["id"], "stopped")


def session_niceness(pid: str) -> int | None:
    """Of the group by which Linux shares its cores out; None without such groups, and for a process that is in none."""
    group = Path(f"/proc/{pid}/autogroup")
    said = group.read_text().split() if group.exists() else []
    return int(said[-1]) if said else None


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's")
def test_a_run_outlives_its_server_and_a_kill_is_told(server: Running, model: str, tmp_path: Path) -> None:
    run = texts(server, "one.txt")
    settings = {**QUICK, "steps": 100_000, "sample_every": 100_000, "evaluate_every": 500, "patience": 0}
    post(server, f"{run['id']}/train", {"model": model, "settings": settings})
    until(server, run["id"], "running")
    # Another server over the same folder, which did not start it.
    others = Jobs(tmp_path / "data" / "training")
    job = others.get(run["id"])
    assert others.state(job) == "running"
    # Writing goes before it.
    assert psutil.Process(job.pid).nice() > psutil.Process().nice()
    run_nice, own_nice = session_niceness(str(job.pid)), session_niceness("self")
    if run_nice is not None:
        # A process of the first session stands outside the groups, beside them: as a group of niceness 0 does.
        assert run_nice > (own_nice or 0)
    # As the system does where memory runs out.
    os.kill(job.pid, signal.SIGKILL)
    error = until(server, run["id"], "failed")["error"]
    assert "killed from outside, most likely because the machine's memory ran out: lower --pass-tokens" in error
    # Who did not start it sees that it is over, and not how it ended.
    assert others.state(job) == "waiting"
    others.files.write(job)
    others.files.error(job).unlink()
    others._ended(job)
    error = others.get(run["id"]).error
    assert "ended from outside, perhaps because memory ran out: if it was, lower --pass-tokens" in error


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's")
def test_measuring_that_is_killed_is_told(server: Running, model: str) -> None:
    run = texts(server, "one.txt", "two.txt", "three.txt")
    assert post(server, f"{run['id']}/look", {"model": model, "settings": QUICK})["busy"]
    # The server is this process. Other tests may have left children that ended and were not waited for.
    alive = [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
    (child,) = [one for one in alive if "--dry-run" in one.cmdline()]
    child.kill()
    told = seen(server, run["id"])
    assert "the measuring was killed from outside" in told["error"]
    assert "lower --pass-tokens" in told["error"]
    assert told["named"] == ["pass_tokens", "batch", "row_tokens", "tokens"]
    assert not seen(server, run["id"], model, QUICK)["error"]


def test_texts_are_taken_out_and_trained_on_again(server: Running, model: str) -> None:
    run = texts(server, "one.txt", "folder/two.txt", "bad.txt")
    texts_of = f"{server.url}/ui/jobs/{run['id']}/texts"
    for name in ("folder/two.txt", "bad.txt"):
        told = httpx.delete(texts_of, params={"file": name}).json()
    assert told["texts"] == ["one.txt"]
    for name in ("bad.txt", "../job.json", "folder", ""):
        assert httpx.delete(texts_of, params={"file": name}).status_code == 400, name
    assert httpx.get(f"{server.url}/ui/jobs/{run['id']}").json()["texts"] == ["one.txt"]
    asked = {"model": model, "settings": {**QUICK, "name": "first", "seed": -1}}
    post(server, f"{run['id']}/train", asked)
    until(server, run["id"], "failed")
    assert httpx.delete(texts_of, params={"file": "one.txt"}).status_code == 400
    draft = post(server, f"{run['id']}/again")
    assert (draft["state"], draft["texts"], draft["name"]) == ("draft", ["one.txt"], "first")
    assert draft["settings"] == asked["settings"]
    # The run is as it was, and the draft is another.
    assert draft["id"] != run["id"]
    assert httpx.delete(f"{server.url}/ui/jobs/{draft['id']}").status_code == 200
    told = httpx.get(f"{server.url}/ui/jobs/{run['id']}").json()
    assert (told["state"], told["texts"]) == ("failed", ["one.txt"])


def test_what_cannot_be_trained_on_is_said(server: Running, model: str) -> None:
    files = [("files", ("tiny.txt", b"too little"))]
    run = httpx.post(f"{server.url}/ui/texts", files=files).json()
    assert "too little text" in seen(server, run["id"], model, QUICK)["error"]
    latin = httpx.post(f"{server.url}/ui/texts", files=[("files", ("latin.txt", b"na\xefve " * 999))]).json()
    told = seen(server, latin["id"], model, QUICK)
    # By the name that the user knows, and not by where the server keeps it.
    assert told["error"].startswith("latin.txt, byte 2 ")
    assert told["where"].startswith("latin.txt, ")
    told = seen(server, run["id"], model, {**QUICK, "seed": -1})
    assert "--seed" in told["error"]
    assert (told["named"], told["where"]) == (["seed"], "--seed")
    post(server, f"{run['id']}/train", {"model": model, "settings": QUICK})
    assert "too little text" in until(server, run["id"], "failed")["error"]


@pytest.mark.parametrize("name", ["../x.txt", "a/../../x", "c:\\x", ".", "a\0b", "x" * 300, "a/" * 2000 + "x"])
def test_texts_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    jobs = Jobs(tmp_path / "training")
    with pytest.raises(BadInput):
        jobs.files.add_texts(QueuedJob("abc", "", "m", 0.0), [("x.txt", b"x"), (name, b"x")])
    assert not list(tmp_path.rglob("x*"))


def test_two_texts_of_one_name_are_both_kept(tmp_path: Path) -> None:
    jobs, job = Jobs(tmp_path / "training"), QueuedJob("abc", "", "m", 0.0)
    jobs.files.add_texts(job, [("a/x.txt", b"one"), ("x.txt", b"one"), ("x.txt", b"two")])
    jobs.files.add_texts(job, [("x.txt", b"one"), ("x.txt", b"three"), ("x.txt", b"two")])
    texts = jobs.files.texts(job)
    kept = {path.relative_to(texts).as_posix(): path.read_bytes() for path in texts.rglob("*.txt")}
    assert kept == {"a/x.txt": b"one", "x.txt": b"one", "x (2).txt": b"two", "x (3).txt": b"three"}


def test_texts_that_nobody_trained_on_are_let_go(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "training")
    old, new = (jobs.new("m", [("x.txt", b"x")]) for _ in range(2))
    place = jobs.files.place(old.id) / "job.json"
    place.write_text(place.read_text().replace(str(old.created), str(old.created - 8 * 86400)))
    jobs._tick()
    assert [job.id for job in jobs.files.all()] == [new.id]
    assert not jobs.files.place(old.id).exists()


def test_a_file_in_the_place_of_a_folder_is_said(tmp_path: Path) -> None:
    jobs, job = Jobs(tmp_path / "training"), QueuedJob("abc", "", "m", 0.0)
    with pytest.raises(StorageError, match="cannot be kept"):
        jobs.files.add_texts(job, [("a", b"x"), ("a/b", b"y")])


def test_what_stands_in_front_of_a_chat_becomes_a_soft_prompt(server: Running, model: str) -> None:
    answer = httpx.post(
        f"{server.url}/ui/distil", json={"name": "Ada", "text": "You are Ada, and you keep the lamp. " * 2}
    )
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert (job["name"], job["command"], job["texts"]) == ("Ada", "distil", ["text.txt"])
    # The tiny model reads bytes: the packaged openings are long for it, and what is wrong must be said.
    ended = until(server, job["id"], "running", "done", "failed")
    assert ended["state"] != "failed", ended["error"]
    post(server, f"{job['id']}/stop")
    until(server, job["id"], "stopped", "done")
