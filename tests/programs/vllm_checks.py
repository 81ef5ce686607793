"""vLLM's backend against its conformance checks, our engine and transformers: run by test_vllm.py in vLLM's own environment.

One engine for all of them. How fast it is, benchmarks/vllm.py measures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

from sordino import formats
from sordino.engine.backend import Backend
from sordino.engine.config import EngineOptions, Limits, Sampling
from sordino.engine.requests import Chunk, Event, Request
from sordino.engine.vllm.backend import VllmBackend
from sordino.engine.vllm.start import parsed, running
from sordino.errors import ConfigError
from sordino.models.base_model import BaseModel
from sordino.prompts.attention import PromptAttention
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.engine.backend_conformance import (
    CHECKS,
    events_of,
    fails_alone_with_a_prompt_of_another_width,
    settled,
)
from tests.engine.test_real_model import TEXTS
from tests.engine.test_sampling import KOBOLD_ORDER
from tests.engine.test_torch_runner import agreed, by_transformers, engine_of, run

FLAGS = ("enforce-eager", "dtype=float32")
GREEDY = Sampling(max_tokens=16, temperature=0)
# What vLLM has none of: our sampler in it draws. With its penalty over a range of the text.
OURS = Sampling(
    max_tokens=16,
    temperature=0.9,
    top_p=0.9,
    typical=0.95,
    repetition_penalty=1.15,
    repetition_range=32,
    repetition_slope=0.7,
    dry_multiplier=0.8,
    xtc_probability=0.5,
    order=KOBOLD_ORDER,
)


@pytest.fixture(scope="module")
def backend() -> Iterator[VllmBackend]:
    options = EngineOptions(runner="vllm", rows=16, kv_memory=512, vllm=FLAGS)
    with running("smollm2", options) as (_, made):
        made.start()
        yield made
        made.stop(finish=False, seconds=60)


@pytest.fixture(scope="module")
def prompts() -> list[SoftPrompt | None]:
    """Three voices without hold, and none."""
    with resources.as_file(resources.files("sordino").joinpath("data", "prompts")) as folder:
        voices = [formats.read(path) for path in sorted(folder.glob("*.zip"))]
    return [None, *(voice.with_metadata(attention=PromptAttention()) for voice in voices)]


def rows(base: BaseModel, prompts: Sequence[SoftPrompt | None], sampling: Sampling) -> list[Request]:
    """16, each prompt with four texts."""
    return [
        Request(tuple(base.encode(TEXTS[(at + at // 4) % len(TEXTS)])), prompts[at % 4], sampling, seed=at)
        for at in range(16)
    ]


def tokens_of(events: Sequence[tuple[int, Event]], count: int) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(count)]
    for index, event in events:
        if isinstance(event, Chunk):
            found[index] += [drawn.token for drawn in event.drawn]
    return found


@pytest.mark.parametrize("check", CHECKS[:-1], ids=lambda check: check.__name__)
def test_it_does_what_a_backend_owes(backend: VllmBackend, check: Callable[[Backend, SoftPrompt], None]) -> None:
    matrix = np.random.default_rng(1).standard_normal((3, backend.model.d_model)).astype(np.float32) / 10
    check(backend, SoftPrompt(matrix, Metadata(placement=backend.model.placement)))


def test_a_prompt_of_another_width_fails_alone(backend: VllmBackend) -> None:
    wide = np.ones((3, backend.model.d_model + 1), dtype=np.float32)
    fails_alone_with_a_prompt_of_another_width(backend, SoftPrompt(wide, Metadata(placement=backend.model.placement)))


def test_sixteen_rows_of_four_prompts_are_those_of_transformers_and_of_our_engine(
    backend: VllmBackend, smollm2: BaseModel, prompts: list[SoftPrompt | None]
) -> None:
    requests = rows(smollm2, prompts, GREEDY)
    tokens = tokens_of(events_of(backend, requests), len(requests))
    equal = [agreed(row, *by_transformers(smollm2, request)) for row, request in zip(tokens, requests, strict=True)]
    # Rows that part at a near tie are counted: a fault would part nearly all.
    assert equal.count(False) <= 2
    ours = [row.ids for row in run(engine_of(smollm2, Limits(rows=16, queue=16), kv_bytes=1 << 30), requests)]
    assert sum(row != own for row, own in zip(tokens, ours, strict=True)) <= 2
    # The prompts are heard.
    assert len({tuple(row) for row in tokens}) > 12


@pytest.mark.parametrize(
    "sampling",
    [
        OURS,
        replace(GREEDY, max_tokens=16, repetition_penalty=1.3),
        replace(GREEDY, max_tokens=16, repetition_penalty=1.3, repetition_range=8, banned=((28,), (30, 198))),
        replace(GREEDY, max_tokens=16, end="forbid", presence_penalty=1.5, logit_bias=((28, -100.0),)),
    ],
    ids=["ours", "repetition", "ours-greedy", "bias"],
)
def test_settings_do_what_they_do_in_our_engine(
    backend: VllmBackend, smollm2: BaseModel, prompts: list[SoftPrompt | None], sampling: Sampling
) -> None:
    """With our sampler equal seeds even draw the same tokens."""
    requests = rows(smollm2, prompts, sampling)[:8]
    tokens = tokens_of(events_of(backend, requests), len(requests))
    ours = [row.ids for row in run(engine_of(smollm2, Limits(rows=8, queue=8), kv_bytes=1 << 30), requests)]
    assert sum(row != own for row, own in zip(tokens, ours, strict=True)) <= 1


def test_what_is_cached_behind_a_prompt_is_for_that_prompt_alone(
    backend: VllmBackend, smollm2: BaseModel, prompts: list[SoftPrompt | None]
) -> None:
    """One long text behind several prompts, two of which are vectors of zeros: their rows differ in what stands where."""
    text = tuple(smollm2.encode(" ".join(TEXTS * 3)))
    none, voice, *_ = prompts
    zeros = [
        SoftPrompt(np.zeros((count, smollm2.d_model), dtype=np.float32), Metadata(placement=smollm2.placement))
        for count in (2, 3)
    ]
    sampling = replace(GREEDY, max_tokens=6)
    for soft in (none, voice, *zeros):
        request = Request(text, soft, sampling)
        before = backend.cache_use()
        (cold,) = tokens_of(events_of(backend, [request]), 1)
        between = backend.cache_use()
        assert between.text_hits == before.text_hits
        (warm,) = tokens_of(events_of(backend, [request]), 1)
        assert backend.cache_use().text_hits == between.text_hits + 1
        assert cold == warm
        agreed(cold, *by_transformers(smollm2, request))


def test_who_leaves_is_aborted_in_vllm_too(backend: VllmBackend, prompts: list[SoftPrompt | None]) -> None:
    async def leave() -> None:
        long = replace(GREEDY, max_tokens=2000, end="ignore")
        async with aclosing(backend.stream([Request((5,), soft, long) for soft in prompts])) as events:
            await anext(events)
            assert backend.counts() == (4, 0)

    asyncio.run(leave())
    settled(backend)
    assert backend.client.engine.get_num_unfinished_requests() == 0


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("no-such-flag=1", "not a flag of vLLM"),
        ("tensor-parallel-siz=2", "not a flag of vLLM"),
        ("tensor-parallel-size=two", "not a flag of vLLM"),
        ("trust-remote-code", "code of strangers is not run"),
        ("max-num-seqs=3", "give --rows"),
        ("load-format=pt", "weights are read from safetensors"),
    ],
)
def test_flags_that_vllm_has_not_or_that_are_ours_are_refused(flag: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parsed([flag])
    assert parsed(["tensor-parallel-size=2"]).tensor_parallel_size == 2


def test_it_takes_nothing_once_stopped(backend: VllmBackend) -> None:
    CHECKS[-1](backend, SoftPrompt(np.ones((1, backend.model.d_model), dtype=np.float32), Metadata()))
