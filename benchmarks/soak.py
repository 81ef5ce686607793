"""Two bad minutes: a real server and 200 clients. A third of them leave at random, half have soft prompts, and meanwhile files of
the library are replaced, broken and taken away, and `benchmarks.hostile` sends what is slow, silent, never read or very long.

Afterwards every request has ended exactly once, no row is left, memory is within 5 % of the start, /health never took more than
200 ms, and every complete greedy answer is the one that a quiet server gives, up to the first tie: a place where the two likeliest
tokens are less than 1e-3 apart. Ties are counted.

    python -m benchmarks.soak --clients 200 --minutes 10 --runner gguf
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch

from benchmarks.engine import prompt
from benchmarks.measuring import save
from sordino import formats
from sordino.models.base_model import load

NEW, TIE = 12, 1e-3
# Milliseconds that /health may take.
HEALTH = 200
TEXTS = ("The keeper wrote", "It rained all day, and", "On Tuesday my sister", "There was nothing", "In the morning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--minutes", type=float, help="in place of --seconds")
    parser.add_argument("--runner", choices=["torch", "gguf"], default="torch")
    parser.add_argument("--prompts", type=int, default=32)
    options = parser.parse_args()
    prompts, seconds = options.prompts, 60 * options.minutes if options.minutes else options.seconds
    base = load(options.model)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder)
        for number in range(prompts):
            formats.write(prompt(base, number), library / f"v{number}.zip", force=True)
        del base
        with server(options.model, library, "--runner", options.runner) as (process, url):
            quiet = asyncio.run(answers(url, [(prompt, text) for prompt in range(-1, prompts) for text in TEXTS]))
            before = psutil.Process(process.pid).memory_info().rss
            began = ended(url)
            hostile = [sys.executable, "-m", "benchmarks.hostile", url, str(seconds)]
            with subprocess.Popen(hostile, stdout=subprocess.PIPE, text=True) as harm:
                with Memory(process.pid) as memory:
                    found = asyncio.run(soak(url, library, quiet, prompts, options.clients, seconds))
                harmful = json.loads(harm.communicate()[0])
                health = harmful.pop("health")
            deadline = time.monotonic() + 30
            while sum(counts(url)) and time.monotonic() < deadline:
                time.sleep(0.1)
            left = sum(counts(url))
            # Repeat the first requests, so that the caches hold the same as at the start.
            asyncio.run(answers(url, [(prompt, text) for prompt in range(-1, prompts // 2) for text in TEXTS]))
            after = psutil.Process(process.pid).memory_info().rss
            ends = ended(url) - began
    row = {
        "runner": options.runner,
        "clients": options.clients,
        "seconds": seconds,
        **found,
        "hostile clients": sum(harmful.values()),
        "/health, median ms": health["median ms"],
        "/health, worst ms": health["worst ms"],
        "rows left": left,
        "ends counted by the server": ends,
        "memory after/before": round(after / before, 3),
        "memory, last third/second": memory.last_third(),
    }
    save("soak", torch.device("cpu"), [row])
    print(harmful)
    slow = health["worst ms"] > HEALTH
    if left or slow or found["wrong answers"] or found["server errors"] or after / before > 1.05:
        raise SystemExit("the soak failed")


class Memory:
    """A process's memory, each second of the block: what the allocators keep of freed blocks is taken once and stays, while a leak
    goes on in the last third."""

    def __init__(self, pid: int) -> None:
        self._process, self._over, self.taken = psutil.Process(pid), threading.Event(), list[int]()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(1):
            self.taken.append(self._process.memory_info().rss)

    def last_third(self) -> float:
        third = max(1, len(self.taken) // 3)
        middle, last = self.taken[third : 2 * third], self.taken[2 * third :]
        return round(statistics.mean(last) / statistics.mean(middle), 3)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


class server:
    """`sordino serve` in a process of its own."""

    def __init__(self, model: str, library: Path, *flags: str, threads: int | None = None, page: bool = False) -> None:
        env = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
        command = [sys.executable, "-m", "sordino", "serve", "--model", model, "--library", str(library), "--port", "0"]
        command += ["--queue", "1000", *([] if page else ["--no-ui"]), *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)

    def __enter__(self) -> tuple[subprocess.Popen[str], str]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if ready := re.search(r"at (http://\S+),", line):
                return self.process, ready[1]
        raise SystemExit("the server did not start")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)


def counts(url: str) -> tuple[int, int]:
    health = httpx.get(f"{url}/health", timeout=30).json()
    return health["running"], health["waiting"]


def ended(url: str) -> int:
    """Requests that ended, however they did, aborted ones counted separately: their clients are gone."""
    page = httpx.get(f"{url}/metrics", timeout=30).text
    return sum(
        int(float(value)) for value in re.findall(r"^sordino_requests_total\{[^}]*\} (\S+)$", page, re.MULTILINE)
    )


async def ask(client: httpx.AsyncClient, url: str, prompt: int, text: str, *, stream: bool = False, **more: int) -> Any:
    model = "smollm2" if prompt < 0 else f"smollm2:v{prompt}"
    body = {"model": model, "prompt": text, "max_tokens": NEW, "temperature": 0, "stream": stream, **more}
    return (
        client.stream("POST", f"{url}/v1/completions", json=body)
        if stream
        else client.post(f"{url}/v1/completions", json=body)
    )


Answers = dict[tuple[int, str], tuple[str, str]]


async def answers(url: str, asked: list[tuple[int, str]]) -> Answers:
    """What the server says to each, one after another: its text, and the part of it before the first tie."""
    found = {}
    async with httpx.AsyncClient(timeout=120) as client:
        for prompt, text in asked:
            answer = await (await ask(client, url, prompt, text, logprobs=2))
            choice = answer.json()["choices"][0]
            found[prompt, text] = choice["text"], _before_tie(choice)
    return found


def _before_tie(choice: dict[str, Any]) -> str:
    text: str = choice["text"]
    found = choice["logprobs"]
    for token, best in enumerate(found["top_logprobs"]):
        first, second = sorted(best.values(), reverse=True)[:2]
        if first - second < TIE:
            return text[: found["text_offset"][token] - found["text_offset"][0]]
    return text


async def soak(url: str, library: Path, quiet: Answers, prompts: int, clients: int, seconds: float) -> dict[str, Any]:
    tally = {"answers": 0, "left": 0, "refused": 0, "server errors": 0, "wrong answers": 0, "ties": 0}
    until = time.monotonic() + seconds
    # Files of the upper half of the soft prompts are replaced and removed; answers with the lower half are compared.
    stable = [key for key in quiet if key[0] < prompts // 2]

    async def one(number: int, client: httpx.AsyncClient) -> None:
        chance = random.Random(number)
        leaves = number % 3 == 0
        while time.monotonic() < until:
            plays = chance.random() < 0.3
            prompt, text = (
                (chance.randrange(prompts // 2, prompts), chance.choice(TEXTS)) if plays else chance.choice(stable)
            )
            if number % 2:
                prompt = -1
            if leaves and chance.random() < 0.5:
                try:
                    async with asyncio.timeout(chance.random() * 5):
                        async with await ask(client, url, prompt, text, stream=True) as answer:
                            async for _ in answer.aiter_lines():
                                if chance.random() < 0.2:
                                    break
                except TimeoutError:
                    pass
                tally["left"] += 1
                continue
            answer = await (await ask(client, url, prompt, text))
            if answer.status_code == 200:
                tally["answers"] += 1
                if (prompt, text) in stable:
                    completion = answer.json()["choices"][0]["text"]
                    whole, before_tie = quiet[prompt, text]
                    if completion != whole:
                        tally[
                            "ties" if before_tie != whole and completion.startswith(before_tie) else "wrong answers"
                        ] += 1
            else:
                tally["refused" if answer.status_code in (400, 404, 503) else "server errors"] += 1

    async def play() -> None:
        chance = random.Random(0)
        good = (library / "v0.zip").read_bytes()
        while time.monotonic() < until:
            path = library / f"v{chance.randrange(prompts // 2, prompts)}.zip"
            what = chance.randrange(4)
            if what == 0:
                path.write_bytes(good[: chance.randrange(len(good))])
            elif what == 1:
                path.unlink(missing_ok=True)
            else:
                path.with_suffix(".part").write_bytes(good)
                path.with_suffix(".part").replace(path)
            await asyncio.sleep(0.05)

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=300, limits=limits) as client:
        await asyncio.gather(play(), *(one(number, client) for number in range(clients)))
    return tally


if __name__ == "__main__":
    main()
