"""Threads wait asleep while others want the cores, awake else; the user's own choice stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sordino.engine.waiting import CALM_LOOKS, Judge

SOURCE = Path(__file__).resolve().parents[2] / "src"

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libgomp is Linux's")

# CPU seconds of a process that only waits after a product of two threads, which spin for minutes if they are let. A team of its
# own for each process: it is made with the first product.
SPINNING = """
import os, sys, time
import torch
from sordino.engine.waiting import StandIns, loaded_libgomps
assert loaded_libgomps()
def waiting():
    x = torch.ones(512, 512)
    x @ x
    began = os.times()
    time.sleep(0.6)
    ended = os.times()
    return ended.user + ended.system - began.user - began.system
stand_ins = StandIns(len(os.sched_getaffinity(0)))
for turn in range(2):
    spun = waiting()
    stand_ins.stand()
    time.sleep(0.3)
    waiting()
    slept = waiting()
    stand_ins.leave()
    time.sleep(0.3)
    print(spun, slept)
"""

# Seconds a second that the threads of this process have no core: with one that computes, and with four. Other processes can only
# make it more, so the least of some looks counts.
WITHOUT_CORE = """
import hashlib, os, threading, time
from sordino.engine.waiting import seconds_without_core
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
data, ended = bytes(50_000_000), threading.Event()
def compute():
    while not ended.is_set():
        hashlib.sha256(data)
for count in (1, 3):
    for _ in range(count):
        threading.Thread(target=compute, daemon=True).start()
    time.sleep(0.3)
    shares = []
    for _ in range(5):
        before, began = seconds_without_core(), time.monotonic()
        time.sleep(0.5)
        now, clock = seconds_without_core(), time.monotonic() - began
        shares.append(sum(now[one] - before.get(one, 0) for one in now) / clock)
    print(min(shares))
ended.set()
"""

WATCHED = """
import sys, threading
from sordino.cli import main
for _ in range(2):
    main([sys.argv[1], "--help"], standalone_mode=False)
print([one.name for one in threading.enumerate()].count("machine watch"))
"""


def printed(program: str, *arguments: str, **environment: str) -> str:
    env = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env={**env, "PYTHONPATH": str(SOURCE), **environment},
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_others_that_want_the_cores_are_seen_at_once_and_their_end_after_a_while() -> None:
    judge = Judge(cores=8, threads=4)
    assert not judge.look(3.9, 2.0), "there is a core for everybody"
    assert judge.look(6.0, 2.0)
    # Threads that sleep hardly wait for a core, which is no sign that the others are gone.
    assert judge.look(6.0, 0.0)
    assert [judge.look(0.1, 0.0) for _ in range(CALM_LOOKS)] == [True] * (CALM_LOOKS - 1) + [False]
    assert not judge.look(0.1, 0.0)


def test_small_work_of_others_beside_all_our_threads_is_no_crowd() -> None:
    judge = Judge(cores=2, threads=2)
    assert not any(judge.look(0.1, 0.9) for _ in range(20))
    assert judge.look(0.9, 0.9)


def test_what_others_compute_while_we_do_not_is_in_nobodys_way() -> None:
    judge = Judge(cores=2, threads=2)
    assert not any(judge.look(2.0, 0.1) for _ in range(20))


@linux
def test_threads_that_have_no_core_are_seen() -> None:
    """Four threads that compute without the interpreter's lock, on one core."""
    shares = printed(WITHOUT_CORE).split()
    alone, four = map(float, shares)
    assert four > 1.5
    # Others that want the same core make it lack a core for a part of the time, and never for all of it.
    assert alone < four / 2


@linux
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2 if hasattr(os, "sched_getaffinity") else True, reason="one core")
def test_beside_a_team_that_stands_by_threads_wait_asleep() -> None:
    lines = printed(SPINNING, OMP_NUM_THREADS="2", GOMP_SPINCOUNT="100000000000").splitlines()
    for line in lines:
        spun, slept = map(float, line.split())
        assert spun > 0.05
        assert slept < spun / 4


@linux
@pytest.mark.parametrize("command", ["serve", "ui", "train", "demo"])
def test_each_command_watches_the_machine_once(command: str) -> None:
    assert printed(WATCHED, command).split()[-1] == "1"


@linux
@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_says_of_waiting_stays(name: str) -> None:
    value = {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "77"}[name]
    assert printed(WATCHED, "serve", **{name: value}).split()[-1] == "0"
