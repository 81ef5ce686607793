"""What HTTP costs, and what a thousand soft prompts cost. PyTorch runs the model on both sides.

HTTP: `sordino serve` with 16 streams and 16 soft prompts, asked by one client, against the engine called directly; greedy, 64 new
tokens a stream, new openings of 24 tokens every round.

A thousand: 16 streams that draw their soft prompts at random from 1,000, with 200 MB for prefixes, so that most have to run
again, against the same streams after one soft prompt. The budget holds about 220 prefixes of 20 positions.

    python -m benchmarks.serving --rounds 5
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from typing import Any

from benchmarks.engine import NEW, STREAMS, Side, endless, openings, prompt, write
from benchmarks.gguf import OverHttp, library_of
from benchmarks.measuring import alternate, arguments, paired_ratio, result_file, save
from benchmarks.soak import server
from sordino.engine.config import Limits
from sordino.engine.engine import Engine
from sordino.engine.runners.torch_runner import TorchRunner
from sordino.models.base_model import BaseModel, load
from sordino.prompts.soft_prompt import SoftPrompt

PROMPTS, BUDGET, TURNS, HTTP_ROUNDS = 1000, 200_000_000, 8, 3


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--only", choices=("http", "thousand"), help="measure one of the two, and keep the other's figures"
    )
    options = parser.parse_args()
    base = load(options.model, device="cpu", dtype="float32")
    prompts = [prompt(base, seed) for seed in range(PROMPTS)]
    rows = {"http": http, "thousand": thousand}
    kept = json.loads(result_file("serving", base.device).read_text())["rows"] if options.only else [None, None]
    save(
        "serving",
        base.device,
        [
            kept[place] if options.only not in (None, name) else measure(options, base, prompts)
            for place, (name, measure) in enumerate(rows.items())
        ],
    )


def http(options: argparse.Namespace, base: BaseModel, prompts: list[SoftPrompt]) -> dict[str, Any]:
    with (
        library_of(base, STREAMS) as folder,
        server(options.model, folder, "--runner", "torch", threads=options.threads) as (_, url),
    ):
        seconds = alternate(
            {
                "http": OverHttp(url, options.model, base, STREAMS),
                # The same requests: over HTTP a bias prevents the end of text.
                "engine": Side(base, prompts[:STREAMS], biases=tuple((i, -100.0) for i in base.stop_ids)),
            },
            # Short runs vary more, so there are more of them.
            HTTP_ROUNDS * options.rounds,
            base.device,
        )
    row: dict[str, Any] = {"rows": f"{STREAMS} streams over HTTP"}
    for name, taken in seconds.items():
        row[f"{name}, tokens/s"] = round(STREAMS * NEW / statistics.median(taken), 1)
    row["http/engine"] = round(paired_ratio(seconds["engine"], seconds["http"]), 3)
    return row


def thousand(options: argparse.Namespace, base: BaseModel, prompts: list[SoftPrompt]) -> dict[str, Any]:
    many, one = Crowd(base, prompts), Crowd(base, prompts[:1])
    seconds = alternate({"1,000 prompts": many, "one prompt": one}, options.rounds, base.device)
    row: dict[str, Any] = {"rows": f"{PROMPTS:,} soft prompts, {BUDGET // 1_000_000} MB for prefixes"}
    for name, taken in seconds.items():
        row[f"{name}, tokens/s"] = round(STREAMS * TURNS * NEW / statistics.median(taken), 1)
    row["many/one"] = round(paired_ratio(seconds["one prompt"], seconds["1,000 prompts"]), 3)
    use = many.engine.runner.cache_use()
    row |= {"hits": use.hits, "misses": use.misses, "evictions": use.evictions}
    if not use.evictions:
        raise SystemExit("nothing was let go: the budget is too large to show anything")
    return row


class Crowd:
    """Several turns of 16 requests, all submitted at once, their soft prompts drawn at random."""

    def __init__(self, base: BaseModel, prompts: list[SoftPrompt]) -> None:
        self.base, self.prompts, self.called = base, prompts, 0
        runner = TorchRunner(endless(base), kv_bytes=1 << 31, prefix_bytes=BUDGET)
        self.engine = Engine(runner, Limits(rows=STREAMS, queue=STREAMS * TURNS))
        self.random = random.Random(0)

    def __call__(self) -> None:
        texts = openings(self.base, STREAMS * TURNS, self.called)
        self.called += 1
        write(self.engine, self.base, texts, [self.random.choice(self.prompts) for _ in texts])


if __name__ == "__main__":
    main()
