"""A server with ten thousand soft prompts in its library, against one with an empty library.

Seconds to the line "Ready" and to each list, the worst /health while lists are asked for, and memory: what each file takes, and
whether more of it is taken as requests name one prompt after another and files come and go.

    python -m benchmarks.many --prompts 10000
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch

from benchmarks.measuring import save
from benchmarks.soak import server
from sordino import formats

LISTS = ("/v1/models", "/v1/soft_prompts", "/api/v1/config/soft_prompts_list", "/ui/prompts", "/ui/state")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--runner", default="auto")
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--named", type=int, default=200, help="requests, each with another soft prompt")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "library"
        library.mkdir()
        # Its data, the default soft prompt and stories, are this benchmark's.
        home = {"XDG_CONFIG_HOME": folder, "XDG_DATA_HOME": folder}
        os.environ.update(home)
        rows = [measured(options, library, 0)]
        fill(library, options.prompts)
        # The system has the files in memory, as after a copy.
        rows.append(measured(options, library, options.prompts))
    rows[1]["KB a file"] = round((rows[1]["MB after lists"] - rows[0]["MB after lists"]) * 1e3 / options.prompts, 1)
    save("many", torch.device("cpu"), rows)


def fill(library: Path, count: int) -> None:
    """Files of SmolLM2's width and one token, with a recipe, held-out results and a sample as `sordino train` writes them."""
    for number in range(min(count, 64)):
        formats.write(made(number), library / f"v{number:05}.zip", force=True)
    for number in range(64, count):
        shutil.copy(library / f"v{number % 64:05}.zip", library / f"v{number:05}.zip")


def made(number: int) -> Any:
    from importlib import resources

    from sordino.library.packaged import packaged
    from sordino.prompts.soft_prompt import SoftPrompt

    with resources.as_file(packaged()[0]) as path:
        known = formats.read(path)
    return SoftPrompt(known.matrix[number % known.n_tokens :][:1], known.metadata).with_metadata(name=f"Voice {number}")


def measured(options: argparse.Namespace, library: Path, count: int) -> dict[str, Any]:
    began = time.monotonic()
    with server(options.model, library, "--runner", options.runner, page=True) as (process, url):
        row: dict[str, Any] = {"files": count, "ready s": round(time.monotonic() - began, 2)}
        process_ = psutil.Process(process.pid)
        with Watch(url) as watch:
            for path in LISTS:
                began = time.monotonic()
                answer = httpx.get(url + path, timeout=60)
                row[f"{path} s"] = round(time.monotonic() - began, 2)
                assert answer.status_code == 200, answer.text
        row["/health worst ms"] = round(1e3 * max(watch.taken))
        row["MB after lists"] = memory(process_)
        names = [f"{options.model}:v{number * 7 % count:05}" for number in range(options.named)] if count else []
        before = process_.cpu_times().user
        for name in names:
            body = {"model": name, "prompt": "a", "max_tokens": 1}
            assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200
        row["ms of processor a named request"] = round(
            1e3 * (process_.cpu_times().user - before) / max(1, len(names)), 1
        )
        row["MB after named"] = memory(process_)
        for number in range(20 if count else 0):
            shutil.copy(library / "v00000.zip", library / f"new{number}.zip")
            assert httpx.get(f"{url}/v1/models/{options.model}:new{number}", timeout=60).status_code == 200
            (library / f"new{number}.zip").unlink()
        row["MB at the end"] = memory(process_)
    return row


def memory(process: psutil.Process) -> float:
    return float(round(process.memory_info().rss / 1e6, 1))


class Watch:
    """How long /health takes, asked all the time within the block."""

    def __init__(self, url: str) -> None:
        self.url, self.taken, self._over = url, list[float](), threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._over.is_set():
                began = time.monotonic()
                client.get(f"{self.url}/health")
                self.taken.append(time.monotonic() - began)
                time.sleep(0.02)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


if __name__ == "__main__":
    main()
