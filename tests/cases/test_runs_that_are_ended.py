"""People who trained on a server, in a terminal that closed, or through `| head`, lost up to 15 seconds and were told nothing."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sordino.training.checkpoint import FILE, read_header
from tests.tiny_models import saved_tiny
from tests.waiting import WAIT, until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals and pipes are POSIX's")]

TEXT = "The keeper wrote in the log that the lamp was clean, and that the wind had gone round to the west again. " * 30
LONG = ("--steps=60000", "--tokens=4", "--batch=2", "--row-tokens=32", "--init=vocab", "--evaluate-every=30000")


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """`sordino train` of some minutes on a tiny model."""
    saved_tiny(tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{number}. {TEXT}")
    files = (f"--model={tmp_path / 'model'}", f"--out={tmp_path / 'v.zip'}", str(tmp_path / "texts"))
    return [sys.executable, "-m", "sordino", "train", *LONG, *files]


def steps_written(folder: Path) -> int:
    try:
        return (folder / "metrics.jsonl").read_text().count('"kind": "step"')
    except OSError:
        return 0


def until_it_steps(folder: Path) -> None:
    until(lambda: steps_written(folder) >= 20)


def saved_step(folder: Path) -> int:
    assert (folder / FILE).exists()
    step: int = read_header(folder)["progress"]["step"]
    return step


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_saves_the_last_step(command: list[str], tmp_path: Path, number: str) -> None:
    """SIGHUP with the terminal gone: nothing can be printed to it any more."""
    terminal, inside = pty.openpty() if number == "SIGHUP" else (-1, subprocess.PIPE)
    errors = inside if number == "SIGHUP" else subprocess.STDOUT
    process = subprocess.Popen(command, stdout=inside, stderr=errors, start_new_session=True)
    if number == "SIGHUP":
        os.close(inside)
        os.set_blocking(terminal, False)
    until_it_steps(tmp_path / "v.run")
    if number == "SIGHUP":
        os.close(terminal)
    process.send_signal(getattr(signal, number))
    said = (process.communicate(timeout=WAIT)[0] or b"").decode()
    assert process.returncode == 0, said
    assert saved_step(tmp_path / "v.run") == steps_written(tmp_path / "v.run")
    assert number == "SIGHUP" or "Go on with: sordino train --resume" in said


def test_a_reader_that_leaves_is_told_of(command: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=WAIT) == 141, said
    assert "The output was closed" in said
    assert "Go on with: sordino train --resume" in said
    assert saved_step(tmp_path / "v.run") == steps_written(tmp_path / "v.run") > 0
