"""vLLM with soft prompts against vLLM without: tokens a second through our backend, and through vLLM's client alone.

Greedy, 64 new tokens a stream, openings of 24 tokens, new ones every round, so that no text is cached. `four prompts`: four soft
prompts of 20 vectors among the streams. `none`: the same without. `vLLM alone`: `AsyncLLM.generate` with the same ids, without our
backend. One engine runs all of it. Needs vLLM (docs/vllm.md).

    python -m benchmarks.vllm --rounds 7
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from itertools import count
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import alternate, arguments, paired_ratio, save
from sordino.engine.config import EngineOptions, Sampling
from sordino.engine.requests import End, Request
from sordino.engine.vllm.backend import VllmBackend
from sordino.engine.vllm.rows import engine_input
from sordino.engine.vllm.sampling import parameters
from sordino.engine.vllm.start import running
from sordino.prompts.soft_prompt import Metadata, SoftPrompt

READ, NEW, TOKENS = 24, 64, 20
GREEDY = Sampling(max_tokens=NEW, temperature=0, end="forbid")


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--vllm", nargs="*", default=[], help="settings of vLLM, as of `sordino serve`: block-size=32")
    options = parser.parse_args()
    flags = ("enforce-eager", f"dtype={options.dtype or 'float32'}", *options.vllm)
    engine = EngineOptions(runner="vllm", rows=max(options.streams), kv_memory=1024, vllm=flags)
    with running(options.model, engine) as (_, backend):
        backend.start()
        prompts = [prompt(backend, seed) for seed in range(4)]
        rows = [
            {**measured(backend, prompts, streams, options.rounds), "vllm": " ".join(options.vllm)}
            for streams in options.streams
        ]
        backend.stop(finish=True)
    save("vllm", torch.device("cpu"), rows)


def measured(backend: VllmBackend, prompts: Sequence[SoftPrompt], streams: int, rounds: int) -> dict[str, Any]:
    texts = openings(backend, streams)
    seconds = alternate(
        {
            "four prompts": lambda: wrote(backend, next(texts), prompts),
            "none": lambda: wrote(backend, next(texts), [None]),
            "vLLM alone": lambda: alone(backend, next(texts)),
        },
        rounds,
        torch.device("cpu"),
    )
    row: dict[str, Any] = {"rows": f"{streams} streams"}
    for name, taken in seconds.items():
        row[f"{name}, tokens/s"] = round(streams * NEW / statistics.median(taken), 1)
    row["four/none"] = round(paired_ratio(seconds["none"], seconds["four prompts"]), 3)
    row["four/alone"] = round(paired_ratio(seconds["vLLM alone"], seconds["four prompts"]), 3)
    return row


def wrote(backend: VllmBackend, texts: Sequence[tuple[int, ...]], prompts: Sequence[SoftPrompt | None]) -> None:
    requests = [Request(ids, prompts[at % len(prompts)], GREEDY) for at, ids in enumerate(texts)]

    async def heard() -> None:
        async with aclosing(backend.stream(requests)) as events:
            async for _, event in events:
                assert not isinstance(event, End) or event.reason == "length", event

    asyncio.run(heard())


_NUMBERS = count()


def alone(backend: VllmBackend, texts: Sequence[tuple[int, ...]]) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    async def one(ids: tuple[int, ...]) -> None:
        request = Request(ids, None, GREEDY)
        given = engine_input(backend.model, request, torch.float32)
        params = SamplingParams(**parameters(request, backend.model.stop_ids), output_kind=RequestOutputKind.DELTA)
        async for _ in backend.client.engine.generate(given, params, f"alone {next(_NUMBERS)}"):
            pass

    async def all_of_them() -> None:
        await asyncio.gather(*map(one, texts))

    asyncio.run_coroutine_threadsafe(all_of_them(), backend.client.loop).result()


def prompt(backend: VllmBackend, seed: int) -> SoftPrompt:
    matrix = np.random.default_rng(seed).standard_normal((TOKENS, backend.model.d_model)).astype(np.float32) / 10
    return SoftPrompt(matrix, Metadata(placement=backend.model.placement))


def openings(backend: VllmBackend, streams: int) -> Iterator[list[tuple[int, ...]]]:
    random = np.random.default_rng(streams)
    low, high = 1000, backend.model.vocab_size - 1000
    while True:
        yield [tuple(map(int, random.integers(low, high, READ))) for _ in range(streams)]


if __name__ == "__main__":
    main()
