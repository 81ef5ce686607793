"""How the threads of a computation wait for each other: awake while the machine is free, asleep while others want its cores.

OpenMP's threads wait awake for some milliseconds at each barrier, which is quickest while each has a core, and takes the time that
the other one needs once they have not: a step then takes ten to a hundred times as long (benchmarks/busy.py). libgomp itself waits
asleep once a process has more threads in its teams than there are cores (its `gomp_managed_threads`, read at each wait). So while
others want the cores, an idle team is kept alive. On other systems than Linux, and with other OpenMP libraries, nothing is done.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

NAME = "machine watch"
LOOK_SECONDS = 0.5
# How far the use of all cores may exceed their number before others count as competing: the system's counts are off by some
# hundredths. And how many looks in a row without competition end it.
SLACK_CORES, CALM_LOOKS = 0.5, 4
# How many of our threads lack a core, on average, before they sleep: programs that compute while we do not are not in the way. A
# client alone gave 0.4 (LOG.md). Sleeping threads hardly wait for a core, so this alone does not show when others are gone.
WITHOUT_CORE = 0.5
# What /proc/stat counts as work.
KINDS = ("user", "nice", "system", "irq", "softirq", "steal")
# Where one of these is set, the user has chosen.
USERS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def watch_the_machine() -> None:
    """From now on, watch whether other programs want the cores. A wait policy that the user set stays. Called again, it does
    nothing."""
    chosen = any(name in os.environ for name in USERS)
    if sys.platform.startswith("linux") and not chosen and all(one.name != NAME for one in threading.enumerate()):
        threads = os.environ.get("OMP_NUM_THREADS", "")
        given = int(threads) if threads.isdecimal() else None
        threading.Thread(target=_watch, args=(given,), daemon=True, name=NAME).start()


@dataclass
class Judge:
    """Whether others want the cores that our threads wait on. threads: how many of ours compute."""

    cores: int
    threads: int
    crowded: bool = False
    _calm: int = 0

    def look(self, others: float, without_core: float) -> bool:
        """Since the last look: the cores that other processes used, and our threads that wanted a core and had none, on average."""
        if others + self.threads > self.cores + SLACK_CORES and (self.crowded or without_core > WITHOUT_CORE):
            self.crowded, self._calm = True, 0
        else:
            self._calm += 1
            self.crowded = self.crowded and self._calm < CALM_LOOKS
        return self.crowded


class StandIns:
    """For each libgomp of this process, a thread with a team of more threads than there are cores. They compute nothing."""

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._ends: dict[str, threading.Event] = {}

    def stand(self) -> None:
        for path in loaded_libgomps():
            if path not in self._ends:
                end = self._ends[path] = threading.Event()
                threading.Thread(target=self._team, args=(path, end), daemon=True, name="standing by").start()

    def leave(self) -> None:
        for end in self._ends.values():
            end.set()
        self._ends.clear()

    def _team(self, path: str, end: threading.Event) -> None:
        library = ctypes.CDLL(path)
        # Any function will do that needs no argument: it is run once by each thread of the team, without Python.
        nothing = ctypes.cast(library.omp_get_thread_num, ctypes.c_void_p)
        library.GOMP_parallel(nothing, None, ctypes.c_uint(self._cores + 1), ctypes.c_uint(0))
        end.wait()


def loaded_libgomps() -> set[str]:
    """PyTorch brings one of its own, llama.cpp uses the system's."""
    with suppress(OSError), open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        return set(re.findall(r"\s(/\S*libgomp[^/\s]*\.so\S*)$", maps.read(), re.MULTILINE))
    return set()


def _watch(given: int | None) -> None:
    import psutil

    allowed = sorted(os.sched_getaffinity(0))
    # As many as PyTorch takes by itself.
    threads = given or psutil.cpu_count(logical=False) or len(allowed)
    judge, stand_ins = Judge(len(allowed), min(threads, len(allowed))), StandIns(len(allowed))
    own = psutil.Process()
    before, waited_before = _seconds(psutil.cpu_times(percpu=True), allowed, own.cpu_times()), seconds_without_core()
    while True:
        time.sleep(LOOK_SECONDS)
        now, waited_now = _seconds(psutil.cpu_times(percpu=True), allowed, own.cpu_times()), seconds_without_core()
        clock, busy, ours = (after - earlier for after, earlier in zip(now, before, strict=True))
        waited = sum(max(0.0, one - waited_before.get(thread, 0.0)) for thread, one in waited_now.items())
        before, waited_before = now, waited_now
        if judge.look(max(0.0, busy - ours) / clock, waited / clock):
            stand_ins.stand()
        else:
            stand_ins.leave()


def seconds_without_core() -> dict[str, float]:
    """How long each thread of this process has waited for a core. Where the kernel does not count that, one that always waits."""
    if not os.path.exists("/proc/self/schedstat"):
        return {"": time.monotonic()}
    found = {}
    for thread in os.listdir("/proc/self/task"):
        # A thread may end meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/self/task/{thread}/schedstat", "rb") as file:
            found[thread] = int(file.read().split()[1]) / 1e9
    return found


def _seconds(cores: Sequence[Any], allowed: Sequence[int], own: Any) -> tuple[float, float, float]:
    """Three times: the clock, how long our cores were busy with any program, and what this process computed."""
    working = sum(getattr(cores[one], kind, 0.0) for one in allowed if one < len(cores) for kind in KINDS)
    return time.monotonic(), working, own.user + own.system


T = TypeVar("T")


def in_thread_of_its_own(make: Callable[[], T]) -> T:
    """`make()`, in a thread that ends afterwards.

    OpenMP keeps a team of threads for every thread that has computed with it, as long as that thread lives. Once there are more of
    them than cores, all teams sleep between two products instead of spinning, and the engine takes half as long again (LOG.md). So
    only the engine's own thread may compute and live on.
    """
    made: Future[T] = Future()

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException as error:
            made.set_exception(error)

    # A daemon: a program that is interrupted does not wait for it.
    thread = threading.Thread(target=run, daemon=True, name="computing")
    thread.start()
    thread.join()
    return made.result()
