"""llama.cpp under our engine, with soft prompts, against llama.cpp's own server without any; and what a soft prompt gains there.

Same file, same threads, greedy, 64 new tokens a stream, new openings of 24 tokens every round. llama.cpp's server is the
one in `xllamacpp` (its C++ loop); ours is `sordino serve --runner gguf` with a different soft prompt for each stream. The same
client asks both over HTTP. Each server is a process of its own. The gain is the held-out loss without a soft prompt minus the loss
with it, on the packaged keeper's held-out texts, windows of 128 tokens, a token a step.

    python -m benchmarks.gguf --rounds 5
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.engine import NEW, READ, openings, prompt
from benchmarks.measuring import alternate, arguments, paired_ratio, save
from benchmarks.soak import server as serving
from sordino import formats
from sordino.engine.config import EngineOptions
from sordino.engine.runners.build import gguf_runner
from sordino.engine.runners.runner import Runner, Span
from sordino.engine.runners.torch_runner import TorchRunner
from sordino.models import files
from sordino.models.base_model import BaseModel, load
from sordino.models.description import DescribedModel, describe
from sordino.prompts.soft_prompt import SoftPrompt

STREAMS = (1, 4, 16)
WINDOW, WINDOWS = 128, 16


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    threads = options.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    source = files.resolve(options.model)
    path = files.gguf_file(source)
    if path is None:
        raise SystemExit(f"{options.model} is no .gguf file")
    model, base = describe(source, path), load(options.model, device="cpu", dtype="float32")
    rows: list[dict[str, Any]] = []
    with runner_of(model, path) as runner:
        rows.append(gain(model, base, runner))
    save("gguf", base.device, rows)
    with (
        library_of(base, max(STREAMS)) as folder,
        serving(options.model, folder, "--runner", "gguf", threads=threads) as (_, url),
        llama_server(path, threads) as their_url,
    ):
        for streams in STREAMS:
            seconds = alternate(
                {
                    "sordino": OverHttp(url, options.model, base, streams),
                    "llama.cpp": Theirs(their_url, base, streams),
                },
                options.rounds,
                base.device,
                pause=0.2,
            )
            row: dict[str, Any] = {"rows": f"{streams} stream{'s' * (streams > 1)}"}
            for name, taken in seconds.items():
                row[f"{name}, tokens/s"] = round(streams * NEW / statistics.median(taken), 1)
            row["sordino/llama.cpp"] = round(paired_ratio(seconds["llama.cpp"], seconds["sordino"]), 3)
            rows.append(row)
            save("gguf", base.device, rows)


def runner_of(model: DescribedModel, path: Path) -> AbstractContextManager[Runner]:
    return gguf_runner(model, path, EngineOptions(rows=max(STREAMS)))


# Nothing else runs in that process: a spinning thread would take a core from the server.
THEIR_SERVER = """
import sys, time, xllamacpp
path, threads, streams = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
said = xllamacpp.CommonParams()
said.model.path = path
said.n_parallel, said.n_ctx = streams, streams * 512
said.cpuparams.n_threads = said.cpuparams_batch.n_threads = threads
said.warmup = True
server = xllamacpp.Server(said)
print("at", server.listening_address, flush=True)
time.sleep(100_000)
"""


@contextmanager
def llama_server(path: Path, threads: int) -> Iterator[str]:
    """llama.cpp's own server, as many slots as streams: its address."""
    command = [sys.executable, "-c", THEIR_SERVER, str(path), str(threads), str(max(STREAMS))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("at "):
                yield line.split()[1]
                return
        raise SystemExit("llama.cpp's server did not start")
    finally:
        process.terminate()
        process.communicate(timeout=30)


@contextmanager
def library_of(base: BaseModel, count: int) -> Iterator[Path]:
    """A folder with soft prompts v0, v1, ..."""
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(count):
            formats.write(prompt(base, seed), Path(folder) / f"v{seed}.zip", force=True)
        yield Path(folder)


def limits(streams: int) -> httpx.Limits:
    """Servers hang up on a connection that was idle while the other side had its turn: ours is given up before."""
    return httpx.Limits(max_connections=streams, keepalive_expiry=2)


class OverHttp:
    """As many requests at once as there are streams, each after a soft prompt of its own."""

    def __init__(self, url: str, model: str, base: BaseModel, streams: int) -> None:
        self.url, self.model, self.base, self.streams, self.called = url, model, base, streams, 0
        self.pool = ThreadPoolExecutor(streams)
        self.client = httpx.Client(timeout=600, limits=limits(streams))

    def __call__(self) -> None:
        texts = openings(self.base, self.streams, self.called)
        self.called += 1
        said = list(self.pool.map(self._ask, range(self.streams), texts))
        if any(one["usage"]["completion_tokens"] != NEW for one in said):
            raise SystemExit(f"other counts of tokens: {[one['usage'] for one in said]}")

    def _ask(self, number: int, ids: Sequence[int]) -> Any:
        body = {
            "model": f"{self.model}:v{number}",
            "prompt": list(ids),
            "max_tokens": NEW,
            "temperature": 0,
            # No end of text.
            "logit_bias": {str(i): -100 for i in self.base.stop_ids},
        }
        return self.client.post(f"{self.url}/v1/completions", json=body).json()


class Theirs:
    """As many requests at once as there are streams."""

    def __init__(self, url: str, base: BaseModel, streams: int) -> None:
        self.url, self.base, self.streams, self.called = url, base, streams, 0
        self.pool = ThreadPoolExecutor(streams)
        self.client = httpx.Client(timeout=600, limits=limits(streams))

    def __call__(self) -> None:
        texts = openings(self.base, self.streams, self.called)
        self.called += 1
        said = list(self.pool.map(self._ask, texts))
        if any(one["tokens_predicted"] != NEW or one["tokens_evaluated"] != READ for one in said):
            raise SystemExit(
                f"other counts of tokens: {[(s['tokens_predicted'], s['tokens_evaluated']) for s in said]}"
            )

    def _ask(self, ids: Sequence[int]) -> Any:
        body = {
            "prompt": list(ids),
            "n_predict": NEW,
            "temperature": 0,
            "top_k": 1,
            "ignore_eos": True,
            "cache_prompt": False,
            "samplers": ["top_k"],
        }
        return self.client.post(f"{self.url}/completion", json=body).json()


def gain(model: DescribedModel, base: BaseModel, runner: Runner) -> dict[str, Any]:
    """What the packaged keeper gains on its held-out texts, in PyTorch and in llama.cpp."""
    with resources.as_file(resources.files("sordino").joinpath("data")) as data:
        keeper = formats.read(data / "prompts" / "keeper.zip")
        ids = [
            i for file in sorted((data / "keeper" / "heldout").glob("*.txt")) for i in model.encode(file.read_text())
        ]
    windows = [ids[at * WINDOW : (at + 1) * WINDOW] for at in range(min(WINDOWS, len(ids) // WINDOW))]
    plain = TorchRunner(base, kv_bytes=1 << 31, prefix_bytes=1 << 28)
    sides: dict[str, Callable[[SoftPrompt | None], float]] = {
        "PyTorch": lambda soft: loss(plain, windows, soft),
        "llama.cpp": lambda soft: loss(runner, windows, soft),
    }
    row: dict[str, Any] = {"rows": f"held-out gain, {len(windows) * (WINDOW - 1)} tokens"}
    gains = {}
    for name, side in sides.items():
        began = time.perf_counter()
        bare, behind = side(None), side(keeper)
        gains[name] = bare - behind
        row |= {f"{name}, none": round(bare, 4), f"{name}, keeper": round(behind, 4)}
        print(f"{name}: {time.perf_counter() - began:.0f} s")
    row["llama.cpp/PyTorch"] = round(gains["llama.cpp"] / gains["PyTorch"], 3)
    return row


def loss(runner: Runner, windows: Sequence[Sequence[int]], soft: SoftPrompt | None) -> float:
    """Mean negative log likelihood of each window's tokens but its first, a token a step, as rows are written."""
    total = 0.0
    for number, window in enumerate(windows):
        runner.open(number, soft, window)
    for at in range(WINDOW - 1):
        if not all(runner.grow(number, 1) for number in range(len(windows))):
            raise SystemExit("too little room for the windows")
        spans = [Span(number, (window[at],), True) for number, window in enumerate(windows)]
        logits_NV = torch.as_tensor(runner.run(spans))
        next_N = torch.tensor([window[at + 1] for window in windows])
        total += float(torch.nn.functional.cross_entropy(logits_NV.double(), next_N, reduction="sum"))
    for number in range(len(windows)):
        runner.close(number, ())
    return total / (len(windows) * (WINDOW - 1))


if __name__ == "__main__":
    main()
