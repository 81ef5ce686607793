"""The requests of one API call: checked, streamed, completed, and ended when the client disconnects."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.requests import HTTPConnection
from starlette.requests import Request as HTTPRequest

from sordino.engine.requests import Chunk, End, Event, Request, widths
from sordino.errors import EngineBusy, SordinoError
from sordino.forward.placement import most_positions
from sordino.models.description import DescribedModel
from sordino.prompts.mixture import StoredPrompt
from sordino.server.errors import Refused
from sordino.server.serving import Serving

T = TypeVar("T")


@dataclass(frozen=True)
class Completion:
    """One finished continuation."""

    text: str
    chunks: tuple[Chunk, ...]
    end: End


@dataclass(frozen=True)
class Generation:
    """The requests of one API call. api: the API's name, for the metrics."""

    serving: Serving
    api: str
    requests: Sequence[Request]

    def positions(self) -> list[int]:
        """Of each request, the positions that are read before the first new token."""
        return [max(widths(request, self.serving.base)) + len(request.ids) for request in self.requests]

    def check(self) -> None:
        """Raise what would end the requests, while the response can still have an error status."""
        self.serving.backend.check(self.requests)

    async def stream(self, *, whole: bool = False) -> AsyncGenerator[tuple[int, Event]]:
        """The events of all requests as they come, each with the index of its request. Closing the stream ends the requests.

        whole: each request's events together at its end. Raises the error of a request that failed, and EngineBusy where the
        server stops or the time limit is over.
        """
        metrics, limits = self.serving.metrics, self.serving.limits
        open_requests = len(self.requests)
        deadline = asyncio.get_running_loop().time() + limits.seconds
        backend_events = self.serving.backend.stream(self.requests, whole=whole, first=metrics.first_token.observe)
        try:
            async with aclosing(backend_events) as events:
                while open_requests:
                    try:
                        async with asyncio.timeout_at(deadline):
                            index, event = await anext(events)
                    except TimeoutError:
                        raise EngineBusy(
                            "the request took too long", do="ask for fewer tokens, or when the server is less busy"
                        ) from None
                    except SordinoError:
                        open_requests -= 1
                        metrics.requests.labels(self.api, "refused").inc()
                        raise
                    if isinstance(event, End):
                        open_requests -= 1
                        metrics.count(self.api, event)
                        if event.error is not None:
                            raise event.error
                        if event.reason == "aborted":
                            raise EngineBusy("the server is stopping")
                    yield index, event
        finally:
            metrics.requests.labels(self.api, "left").inc(open_requests)

    async def complete(self, http: HTTPRequest) -> list[Completion]:
        """All continuations, unless the client disconnects first. Raises as `stream`."""
        return await unless_disconnected(http, self._complete())

    async def _complete(self) -> list[Completion]:
        chunks: list[list[Chunk]] = [[] for _ in self.requests]
        ends: list[End | None] = [None] * len(self.requests)
        async with aclosing(self.stream(whole=True)) as events:
            async for index, event in events:
                if isinstance(event, Chunk):
                    chunks[index].append(event)
                else:
                    ends[index] = event
        return [
            Completion("".join(chunk.text for chunk in some), tuple(some), end)
            for some, end in zip(chunks, ends, strict=True)
            if end is not None
        ]


def continuations(request: Request, n: int) -> list[Request]:
    """n requests for the same text. Continuation i has the seed `request.seed + i`."""
    return [replace(request, seed=(request.seed + index) % 2**63) for index in range(n)]


def seed_of(seed: int | None) -> int:
    """The seed that a client gave, or a random one: of 53 bits, which a client's JavaScript can give back."""
    return secrets.randbits(53) if seed is None else seed % 2**63


def client_of(connection: HTTPConnection) -> str:
    """Identifies the client, for a fair order of waiting requests: the address that the request came from."""
    return connection.client.host if connection.client else ""


def leading_positions(base: DescribedModel, prompt: StoredPrompt | None) -> int:
    """Positions before a request's own text: the soft prompt (of a mixture, the longest) and BOS."""
    return most_positions(base, prompt.n_tokens if prompt else 0)


async def unless_disconnected(http: HTTPRequest, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client disconnects. (Of a streamed answer the server itself does that.)"""
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_until_disconnected(http))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            # The client is gone: nothing is sent.
            raise Refused(499, "the client has disconnected")
        return task.result()
    finally:
        for one in (task, disconnect):
            one.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await one


async def _until_disconnected(http: HTTPRequest) -> None:
    # The body has been read, so the next message is the disconnect.
    while (await http.receive())["type"] != "http.disconnect":
        pass
