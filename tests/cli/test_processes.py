"""`sordino train` in several processes, as people start, stop and lose them: all real, on a tiny model."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from sordino.cli.console import err, out
from sordino.formats import read
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.training.checkpoint import read_header
from sordino.training.launch import LOOPBACK, environment_of, store_at
from sordino.training.sweep import on_ray
from tests.cli.commands import refused, run
from tests.training.runs import model_and_texts, off

TEXT = "The keeper wrote in the log that the lamp was clean, and that the wind had gone round to the west again. " * 30
SHORT = ("--tokens=4", "--batch=3", "--row-tokens=32", "--init=vocab", "--dtype=float32", "--model=model", "texts")
MEASURED, UNMEASURED = (*SHORT, "--steps=12"), ("--measure=none", "--no-samples")
# Until it is stopped: no machine is as fast.
LONG = (*SHORT, *UNMEASURED, "--steps=60000", "--processes=2")
slow = pytest.mark.slow
# Seconds, of a machine with much else to do.
PATIENCE = 600.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_and_texts(tmp_path_factory.mktemp("processes"), (f"{number}. {TEXT}" for number in range(3)))


@pytest.fixture(autouse=True)
def _nothing_outlives_its_test() -> Iterator[None]:
    """What a failed test left would take the machine from the tests after it."""
    before = set(psutil.Process().children(recursive=True))
    yield
    end(set(psutil.Process().children(recursive=True)) - before)


def end(processes: Iterable[psutil.Process]) -> None:
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            one.kill()


def command(*arguments: object, program: tuple[str, ...] = ("-m", "sordino")) -> list[str]:
    return [sys.executable, *program, "train", *map(str, arguments)]


def finished(*arguments: object, cwd: Path, program: tuple[str, ...] = ("-m", "sordino")) -> str:
    """What it printed on standard output."""
    done = subprocess.run(
        command(*arguments, program=program), cwd=cwd, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def started(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # What started the tests may ignore it, as shells do for what they start in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def lines_of(run_folder: Path) -> list[str]:
    try:
        return (run_folder / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return []


def losses(run_folder: Path) -> list[tuple[float, float]]:
    """Of each step, the loss and the norm of the gradient, to the bit."""
    events = map(json.loads, lines_of(run_folder))
    return [(event["loss"], event["grad_norm"]) for event in events if event["kind"] == "step"]


def until(running: subprocess.Popen[str], run_folder: Path, lines: int) -> subprocess.Popen[str]:
    """The run, once it has written so many lines."""
    deadline = time.monotonic() + PATIENCE
    while len(lines_of(run_folder)) < lines:
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.02)
    return running


def stopped(running: subprocess.Popen[str]) -> str:
    """What it printed before and after Ctrl-C."""
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=PATIENCE)[0]
    assert running.returncode == 0, said
    return said


def ranks_of(launcher: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    return {child.environ()["RANK"]: child for child in psutil.Process(launcher.pid).children()}


# Before anything is loaded -------------------------------------------------------------------------------------------------


def test_a_number_that_is_none_is_refused() -> None:
    assert "--processes: out of range; expected 1 to 4096, got 0" in refused("train", "texts", "--processes", "0")


def test_torchrun_and_processes_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert "torchrun has started the processes" in refused("sweep", "texts", "--processes", "2")


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process, as the second of two."""
    store = store_at(LOOPBACK, 0, is_master=True)
    for name, value in environment_of(1, 2, store.port).items():
        monkeypatch.setenv(name, value)
    for stream in (out, err):
        # Restored afterwards: other tests of this process read what is printed.
        monkeypatch.setattr(stream, "quiet", False)
    yield
    del store


def test_an_error_is_said_once_by_whichever_process_has_it_first(second_of_two: None) -> None:
    first, second = run("list"), run("list")
    assert first.exit_code == second.exit_code == 2
    assert "error: list: this command runs in one process; start it without torchrun" in first.stderr
    assert second.output == ""


def test_a_wrong_flag_is_said_once(second_of_two: None) -> None:
    first, second = run("train", "--setps", "3"), run("train", "--setps", "3")
    assert first.exit_code == second.exit_code == 2
    assert "--setps" in first.stderr
    assert second.output == ""


def test_what_cannot_be_sharded_is_refused_before_anything_is_loaded(folder: Path) -> None:
    given = ("train", folder / "texts", "--model", folder / "model", "--out", folder / "none.zip", "--shard")
    assert "there is one process; give --processes too, or start torchrun" in refused(*given)
    two = (*given, "--processes", "2")
    assert "--shard: packed weights cannot be sharded; got --quantise int8" in refused(*two, "--quantise", "int8")
    assert "--device: each process takes its own GPU" in refused(*two, "--device", "cpu")
    several = ("train", "--prompt", f"a={folder / 'texts'}", "--out-dir", folder / "several", *two[6:])
    assert "--shard: this is for one soft prompt" in refused(*several, "--model", folder / "model")


def test_what_is_no_cluster_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("sweep", folder / "texts", "--model", folder / "model", "--out-dir", folder / "swept")
    assert "--on: this is no cluster; expected ray or ray://HOST:PORT, got slurm" in refused(*given, "--on", "slurm")
    assert "this is for one machine" in refused(*given, "--on", "ray", "--processes", "2")
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    assert "got no ray; pip install 'sordino[ray]'" in run(*given, "--on", "ray").stderr
    # As `pip install ray` leaves it.
    monkeypatch.setattr(on_ray, "find_spec", lambda name: name if name == "ray" else None)
    assert "got no grpc; pip install 'sordino[ray]'" in run(*given, "--on", "ray://127.0.0.1:1").stderr


def test_a_wrong_path_starts_no_process(tmp_path: Path) -> None:
    assert "no such file or folder" in refused("train", tmp_path / "nowhere", "--processes", "2")


# Real processes ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one(folder: Path) -> SoftPrompt:
    """What one process makes, measured."""
    finished(*MEASURED, "--out=one.zip", cwd=folder)
    return read(folder / "one.zip")


@slow
def test_two_processes_make_what_one_makes_and_one_of_them_says_so(folder: Path, one: SoftPrompt) -> None:
    unmeasured = (*MEASURED, *UNMEASURED)
    said = finished(*unmeasured, "--out=two.zip", "--processes=2", cwd=folder)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sordino")
    under_torchrun = finished(*unmeasured, "--out=three.zip", cwd=folder, program=torchrun)
    two, three = (read(folder / f"{name}.zip") for name in ("two", "three"))
    assert off(torch.tensor(two.matrix), torch.tensor(one.matrix)) <= 1e-4
    assert two.content_hash == three.content_hash
    for text, name in ((said, "two"), (under_torchrun, "three")):
        assert text.count("Starting from") == text.count("Written:") == 1
        assert len(lines_of(folder / f"{name}.run")) == len(lines_of(folder / "one.run"))
    assert sorted(os.listdir(folder / "two.run")) == sorted(os.listdir(folder / "one.run"))


@slow
def test_a_sharded_run_measures_its_result_in_all_processes(folder: Path, one: SoftPrompt) -> None:
    said = finished(*MEASURED, "--out=sharded.zip", "--processes=2", "--shard", cwd=folder)
    assert said.count("Written:") == 1
    sharded = read(folder / "sharded.zip")
    assert off(torch.tensor(sharded.matrix), torch.tensor(one.matrix)) <= 1e-4
    ours, own = (prompt.metadata.heldout["nll"]["soft_prompt"] for prompt in (sharded, one))
    assert ours == pytest.approx(own, abs=1e-3)
    assert [set(sample) for sample in sharded.metadata.samples] == [set(sample) for sample in one.metadata.samples]


@pytest.fixture(scope="module")
def whole(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A long run of two processes that has written 80 lines and goes on."""
    running = started(*LONG, "--out=whole.zip", cwd=folder)
    try:
        yield until(running, folder / "whole.run", 80)
    finally:
        if running.poll() is None:
            end([*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)])
        running.wait(PATIENCE)


@slow
@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit of another process")
def test_a_straggler_is_waited_for_and_a_full_disk_ends_all(folder: Path, whole: subprocess.Popen[str]) -> None:
    ranks = ranks_of(whole)
    ranks["1"].suspend()
    before = len(lines_of(folder / "whole.run"))
    time.sleep(3)
    # The steps of which it has done its part: the other takes hundreds in this time where it does not wait.
    waiting = len(lines_of(folder / "whole.run"))
    assert waiting <= before + 3
    ranks["1"].resume()
    until(whole, folder / "whole.run", waiting + 20)

    ranks["0"].rlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    said = whole.communicate(timeout=PATIENCE)[0]
    assert whole.returncode == 1, said
    (error,) = [line for line in said.splitlines() if "error" in line]
    assert "could not be written (File too large)" in error
    assert "whole.run" in error
    assert not any(rank.is_running() for rank in ranks.values())


@slow
def test_a_run_is_stopped_loses_a_process_and_goes_on_to_the_same_bits(
    folder: Path, whole: subprocess.Popen[str]
) -> None:
    said = stopped(until(started(*LONG, "--out=cut.zip", cwd=folder), folder / "cut.run", 20))
    assert said.count("Go on with: sordino train --resume") == 1
    step = read_header(folder / "cut.run")["progress"]["step"]
    assert step == len(losses(folder / "cut.run"))

    going = until(started("--resume=cut.run", "--processes=2", cwd=folder), folder / "cut.run", step + 20)
    ranks = ranks_of(going)
    ranks["1"].kill()
    # The other would wait for it for days.
    said = going.communicate(timeout=PATIENCE)[0]
    assert going.returncode == 75, said
    (error,) = [line for line in said.splitlines() if "error" in line]
    assert "process 2 of 2 was ended by SIGKILL" in error
    assert "sordino train --resume cut.run --processes 2" in error
    assert "Traceback" not in said
    assert not any(rank.is_running() for rank in ranks.values())

    stopped(until(started("--resume=cut.run", "--processes=2", cwd=folder), folder / "cut.run", 80))
    both = zip(losses(folder / "cut.run")[:70], losses(folder / "whole.run")[:70], strict=True)
    assert all(ours == own for ours, own in both)
