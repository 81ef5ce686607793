"""A busy machine: what eight busy processes cost, and what each way for threads to wait costs on a quiet machine.

The threads of a step wait for each other. They can spin, which is fastest while each has a core, or sleep, which leaves the core to
the thread that they wait for. The sides are `sordino`'s own way (spin while the machine is free), OpenMP's default (spin for
300,000 turns), 20,000 turns, and sleep at once. Rounds run all sides in turn, first on a quiet machine, then beside a program of
eight busy processes:

    serve     16 tokens over HTTP after an opening of 24, PyTorch; `llama` the same by llama.cpp
    train     a step of 2 rows of 64 tokens
    beside    16 tokens over HTTP beside a training run at low priority (nice 10), as the page starts it

    python -m benchmarks.busy --rounds 5
    python -m benchmarks.busy --only serve llama --sides ours default
"""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.measuring import arguments, paired_ratio, save
from sordino.engine.waiting import CALM_LOOKS, LOOK_SECONDS

BUSY, NEW, STEPS, NICE = 8, 16, 2, 10
# Seconds after which an answer is given up; it counts as that long.
LIMIT = 30.0
# The environment of each side. A number is a number of turns.
SIDES: dict[str, dict[str, str]] = {
    "ours": {},
    "default": {"GOMP_SPINCOUNT": "300000"},
    "20000": {"GOMP_SPINCOUNT": "20000"},
    "asleep": {"OMP_WAIT_POLICY": "passive"},
}
OPENING = "The keeper wrote in the log that the lamp was clean and that the wind had gone round to the west"
WORKS = ("serve", "llama", "train", "beside")


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument(
        "--sides", nargs="+", default=list(SIDES), help="of ours, default, asleep, and numbers of turns"
    )
    parser.add_argument("--seconds", type=float, default=600, help="end the rounds of a work after so long")
    options = parser.parse_args()
    sides = {name: SIDES.get(name, {"GOMP_SPINCOUNT": name}) for name in options.sides}
    rows = []
    # Ending this process ends its servers and runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for work in options.only:
        with ExitStack() as stack:
            runs = {name: stack.enter_context(STARTS[work](options.model, env)) for name, env in sides.items()}
            for run in runs.values():
                run()
            # To one side the work of the one before it is another program's, which counts as gone after some looks.
            quiet = in_turn(runs, options.rounds, options.seconds, pause=(CALM_LOOKS + 2) * LOOK_SECONDS)
            with busy(BUSY):
                loaded = in_turn(runs, options.rounds, options.seconds)
        rows += [row_of(work, name, quiet, loaded) for name in sides]
    save("busy", torch.device("cpu"), rows)


def row_of(work: str, side: str, quiet: Mapping[str, list[float]], loaded: Mapping[str, list[float]]) -> dict[str, Any]:
    """over: seconds as a multiple of OpenMP's default in the same rounds."""
    row = {
        "rows": work,
        "waiting": side,
        "quiet, s": round(statistics.median(quiet[side]), 3),
        "busy, s": round(statistics.median(loaded[side]), 3),
        "worst busy, s": round(max(loaded[side]), 3),
        "busy/quiet": round(statistics.median(loaded[side]) / statistics.median(quiet[side]), 2),
    }
    if "default" in quiet:
        row["quiet/default"] = round(paired_ratio(quiet[side], quiet["default"]), 3)
    return row


def in_turn(
    runs: Mapping[str, Callable[[], float]], rounds: int, seconds: float, *, pause: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of every side in every round. pause: seconds without work before each."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    until = time.monotonic() + seconds
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(pause)
            found[name].append(run())
        if time.monotonic() > until:
            break
    return found


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Another program, in a session of its own, whose processes never wait."""
    # Each ends with its parent: leftovers of a killed benchmark would distort later figures.
    program = (
        "import os\n"
        f"all(os.fork() for _ in range({count - 1}))\n"
        "parent = os.getppid()\n"
        "while os.getppid() == parent:\n"
        "    for _ in range(1_000_000): pass\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    time.sleep(1)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def serving(model: str, env: Mapping[str, str], runner: str = "torch") -> Iterator[Callable[[], float]]:
    """All sides start at once: the first request waits for its server."""
    command = [
        sys.executable,
        "-m",
        "sordino",
        "serve",
        f"--model={model}",
        "--port=0",
        "--no-ui",
        f"--runner={runner}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean(env), start_new_session=True)
    client = httpx.Client(timeout=LIMIT)
    # Forbid SmolLM2's end tokens, so that all answers have one length.
    asked = {"model": model, "max_tokens": NEW, "temperature": 0, "logit_bias": {"0": -100, "2": -100}}
    turn = iter(range(10**9))
    address = ""

    def ask() -> float:
        nonlocal address
        address = address or ready(process)
        # A new opening each time, because the last one is cached.
        said = {**asked, "prompt": f"{next(turn)}. {OPENING}"}
        began = time.perf_counter()
        with suppress(httpx.ReadTimeout):
            client.post(f"{address}/v1/completions", json=said).raise_for_status()
        return time.perf_counter() - began

    try:
        yield ask
    finally:
        client.close()
        process.kill()
        process.wait()


def ready(process: subprocess.Popen[str]) -> str:
    """The server's address, once it listens."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"at (http://\S+),", line):
            return found[1]
    raise SystemExit("the server did not start")


class Training:
    """A run without end that stands still but for the steps that are asked for."""

    def __init__(self, model: str, env: Mapping[str, str], folder: Path, nice: int) -> None:
        text, self._said = folder / "text.txt", folder / "said.txt"
        text.write_text("\n\n".join(f"Day {n}. {OPENING}, {n} ships went by." for n in range(200)))
        command = [sys.executable, "-m", "sordino", "train", str(text), f"--model={model}", f"--out={folder}/v.zip"]
        command += ["--steps=100000", "--batch=2", "--row-tokens=64", "--init=vocab", "--patience=0"]
        command += ["--evaluate-every=100000", "--sample-every=100000"]
        with self._said.open("w") as said:
            self._process = subprocess.Popen(
                ["nice", "-n", str(nice), *command], stdout=said, stderr=said, env=clean(env), start_new_session=True
            )
        self._metrics = folder / "v.run" / "metrics.jsonl"

    def steps(self) -> list[float]:
        """Seconds of each so far."""
        if self._process.poll() is not None:
            raise SystemExit(self._said.read_text())
        lines = self._metrics.read_text().split("\n")[:-1] if self._metrics.exists() else []
        return [step["seconds"] for step in map(json.loads, lines) if step["kind"] == "step"]

    def go(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)
        while not self.steps():
            time.sleep(0.1)

    def halt(self) -> None:
        os.killpg(self._process.pid, signal.SIGSTOP)

    def end(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def training(model: str, env: Mapping[str, str], nice: int = 0) -> Iterator[Training]:
    with tempfile.TemporaryDirectory() as folder:
        run = Training(model, env, Path(folder), nice)
        try:
            yield run
        finally:
            run.end()


@contextmanager
def stepping(model: str, env: Mapping[str, str]) -> Iterator[Callable[[], float]]:
    with training(model, env) as run:

        def steps() -> float:
            run.go()
            # The first was started and paused before.
            before = len(run.steps()) + 1
            while len(run.steps()) < before + STEPS:
                time.sleep(0.02)
            run.halt()
            return statistics.median(run.steps()[before : before + STEPS])

        yield steps


@contextmanager
def beside(model: str, env: Mapping[str, str]) -> Iterator[Callable[[], float]]:
    with serving(model, env) as ask, training(model, env, NICE) as run:

        def asked() -> float:
            run.go()
            try:
                return ask()
            finally:
                run.halt()

        yield asked


STARTS: dict[str, Any] = {
    "serve": serving,
    "llama": lambda model, env: serving(model, env, "gguf"),
    "train": stepping,
    "beside": beside,
}


def clean(env: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what it says of waiting, and what a side says of it."""
    ours = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    return {**{name: value for name, value in os.environ.items() if name not in ours}, **env}


if __name__ == "__main__":
    main()
