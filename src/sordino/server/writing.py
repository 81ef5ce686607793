"""From what a route was asked to the engine's events: text to ids, n continuations, one stream of events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from sordino.described_model import DescribedModel
from sordino.engine.requests import Chunk, End, Event, Request
from sordino.errors import EngineBusy
from sordino.placement import leading_ids
from sordino.sampling import Drawn, Sampling
from sordino.server.serving import Serving
from sordino.soft_prompt import SoftPrompt


@dataclass(frozen=True)
class Job:
    """One text to continue `n` times. ids: its own, without BOS. Continuation i has the seed `seed + i`."""

    ids: tuple[int, ...]
    prompt: SoftPrompt | None
    sampling: Sampling
    seed: int
    n: int = 1
    client: str = ""


@dataclass(frozen=True)
class Written:
    """One finished continuation."""

    text: str
    drawn: tuple[Drawn, ...]
    parts: tuple[Chunk, ...]
    end: End


def requests_of(base: DescribedModel, job: Job) -> list[Request]:
    leading = leading_ids(base, job.prompt.metadata.placement if job.prompt else None)
    one = Request((*leading, *job.ids), job.prompt, job.sampling, job.seed, job.client)
    return [replace(one, seed=(job.seed + index) % 2**63) for index in range(job.n)]


def width_of(base: DescribedModel, prompt: SoftPrompt | None) -> int:
    """Positions that stand before a request's own text: soft prompt and BOS."""
    return len(base.bos_ids) + (prompt.n_tokens if prompt else 0)


def chat_ids(base: DescribedModel, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
    """The conversation in the model's template, up to where the assistant begins. Raises ModelError."""
    ids = tuple(base.encode_markup(base.chat_opening(messages)))
    # Templates write BOS themselves; where it belongs is the placement's business.
    return ids[len(base.bos_ids) :] if base.bos_ids and ids[: len(base.bos_ids)] == base.bos_ids else ids


async def stream(serving: Serving, api: str, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Event]]:
    """The events of all requests as they come, each with its request's place. Leaving ends them all.

    api: whose requests they are, for the metrics. Raises what a request failed with, and EngineBusy where the server stopped
    it or it took longer than it may.
    """
    began = time.monotonic()
    box: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue()

    async def forward(index: int, request: Request) -> None:
        try:
            async with aclosing(serving.backend.events(request)) as events:
                async for event in events:
                    box.put_nowait((index, event))
        except Exception as error:
            box.put_nowait((index, error))

    tasks = [asyncio.create_task(forward(index, request)) for index, request in enumerate(requests)]
    left, silent = len(tasks), True
    try:
        while left:
            index, happened = await _next(box, began + serving.limits.seconds)
            if isinstance(happened, Exception):
                left -= 1
                serving.metrics.requests.labels(api, "refused").inc()
                raise happened
            if silent:
                silent = False
                serving.metrics.first_token.observe(time.monotonic() - began)
            if isinstance(happened, End):
                left -= 1
                serving.metrics.count(api, happened)
                if happened.error is not None:
                    raise happened.error
                if happened.reason == "aborted":
                    raise EngineBusy("the server is stopping")
            yield index, happened
    finally:
        serving.metrics.requests.labels(api, "left").inc(left)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _next(box: asyncio.Queue[tuple[int, Event | Exception]], deadline: float) -> tuple[int, Event | Exception]:
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await box.get()
    except TimeoutError:
        raise EngineBusy("the request took too long", do="ask for less, or when fewer are writing") from None


async def write(serving: Serving, api: str, requests: Sequence[Request]) -> list[Written]:
    """All continuations, whole. Raises as `stream`."""
    chunks: list[list[Chunk]] = [[] for _ in requests]
    ends: list[End | None] = [None] * len(requests)
    async with aclosing(stream(serving, api, requests)) as events:
        async for index, event in events:
            if isinstance(event, Chunk):
                chunks[index].append(event)
            else:
                ends[index] = event
    return [
        Written("".join(part.text for part in parts), tuple(d for part in parts for d in part.drawn), tuple(parts), end)
        for parts, end in zip(chunks, ends, strict=True)
        if end is not None
    ]
