"""From what a route was asked to the engine's events: text to ids, n continuations, one stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from sordino.engine.requests import Chunk, End, Event, Request, request_for
from sordino.engine.sampling import Sampling
from sordino.errors import EngineBusy, SordinoError
from sordino.models.description import DescribedModel
from sordino.prompts.mixture import Prompt
from sordino.server.serving import Serving


@dataclass(frozen=True)
class Job:
    """One text to continue `n` times. ids: its own, without BOS. Continuation i has the seed `seed + i`.

    token_mixture: whether a mixture's weights stay as they are while it writes.
    """

    ids: tuple[int, ...]
    prompt: Prompt | None
    sampling: Sampling
    seed: int
    n: int = 1
    client: str = ""
    token_mixture: bool = False


@dataclass(frozen=True)
class Written:
    """One finished continuation."""

    text: str
    parts: tuple[Chunk, ...]
    end: End


def requests_of(base: DescribedModel, job: Job) -> list[Request]:
    one = request_for(
        base, job.ids, job.prompt, job.sampling, job.seed, client=job.client, token_mixture=job.token_mixture
    )
    return [replace(one, seed=(job.seed + index) % 2**63) for index in range(job.n)]


def width_of(base: DescribedModel, prompt: Prompt | None) -> int:
    """Positions that stand before a request's own text: soft prompt (of a mixture, the longest) and BOS."""
    return len(base.bos_ids) + (prompt.n_tokens if prompt else 0)


def chat_ids(base: DescribedModel, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
    """The conversation in the model's template, up to where the assistant begins. Raises ModelError."""
    return base.without_bos(base.encode_markup(base.chat_opening(messages)))


async def stream(
    serving: Serving, api: str, requests: Sequence[Request], *, whole: bool = False
) -> AsyncGenerator[tuple[int, Event]]:
    """The events of all requests as they come, each with its request's place. Leaving ends them all.

    api: whose requests they are, for the metrics. whole: each request's events together at its end. Raises what a request failed
    with, and EngineBusy where the server stopped it or it took longer than it may.
    """
    metrics, left = serving.metrics, len(requests)
    deadline = asyncio.get_running_loop().time() + serving.limits.seconds
    try:
        async with aclosing(serving.backend.stream(requests, whole=whole, first=metrics.first_token.observe)) as events:
            while left:
                try:
                    async with asyncio.timeout_at(deadline):
                        index, happened = await anext(events)
                except TimeoutError:
                    raise EngineBusy(
                        "the request took too long", do="ask for less, or when fewer are writing"
                    ) from None
                except SordinoError:
                    left -= 1
                    metrics.requests.labels(api, "refused").inc()
                    raise
                if isinstance(happened, End):
                    left -= 1
                    metrics.count(api, happened)
                    if happened.error is not None:
                        raise happened.error
                    if happened.reason == "aborted":
                        raise EngineBusy("the server is stopping")
                yield index, happened
    finally:
        metrics.requests.labels(api, "left").inc(left)


async def write(serving: Serving, api: str, requests: Sequence[Request]) -> list[Written]:
    """All continuations, whole. Raises as `stream`."""
    chunks: list[list[Chunk]] = [[] for _ in requests]
    ends: list[End | None] = [None] * len(requests)
    async with aclosing(stream(serving, api, requests, whole=True)) as events:
        async for index, event in events:
            if isinstance(event, Chunk):
                chunks[index].append(event)
            else:
                ends[index] = event
    return [
        Written("".join(part.text for part in parts), tuple(parts), end)
        for parts, end in zip(chunks, ends, strict=True)
        if end is not None
    ]
