"""vLLM as a backend: requests go to its engine client, on the event loop that the client lives on, and events come back.

The engine is in processes of its own, which vLLM starts. Each request is a task on the client's loop; `stream` may be called from
any other.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sordino.engine.backend import Capabilities, check_open, check_supported
from sordino.engine.requests import CacheUse, End, Event, Request, check_room, check_token_ids, widths
from sordino.engine.vllm.rows import Output, Row, engine_input
from sordino.engine.vllm.sampling import beyond, parameters
from sordino.errors import ConfigError, EngineBusy, SordinoError
from sordino.models.base_model import BaseModel
from sordino.models.description import DescribedModel

log = logging.getLogger("sordino.server")
SAMPLER = "sordino.engine.vllm.sampler:OwnSampler"


@dataclass(frozen=True)
class Client:
    """vLLM's engine client (`vllm.engine.protocol.EngineClient`) and its event loop. rows: most that run at once. queue: most that
    wait. samples: whether `SAMPLER` is among its logits processors."""

    engine: Any
    loop: asyncio.AbstractEventLoop
    rows: int
    queue: int
    samples: bool


@dataclass(eq=False)
class _OpenRequest:
    """One request of a stream. publish: takes its events to the stream. held: those that wait for its end (None: none waits)."""

    request: Request
    row: Row
    publish: Callable[[list[Event]], None]
    held: list[Event] | None
    task: asyncio.Task[End] | None = field(default=None)


class VllmBackend:
    """A `Backend`."""

    name = "vLLM"
    network: BaseModel | None = None
    capabilities = Capabilities(
        frozenset(("embedding prompt",)),
        log_probabilities=True,
        # Those of a row with vectors in it are not offered.
        scoring=False,
        # Attention is vLLM's own.
        strengths="one",
        hold=False,
        branches=1,
        grammars=False,
    )

    def __init__(self, model: DescribedModel, client: Client) -> None:
        config = client.engine.model_config
        self.model, self.client, self._dtype = model, client, config.dtype
        self.context_length = min(model.context_length, int(config.max_model_len))
        self._changed = threading.Condition()
        self._open: set[_OpenRequest] = set()
        self._draining = self._stopping = False
        self._uses = CacheUse()

    @property
    def dead(self) -> BaseException | None:
        engine = self.client.engine
        return engine.dead_error if engine.errored else None

    def start(self) -> None:
        pass

    def stop(self, *, finish: bool, seconds: float | None = None) -> bool:
        """Accept nothing more. Who started the engine ends it afterwards."""
        self._draining = True
        if not finish:
            self._stopping = True
            with suppress(RuntimeError):
                self.client.loop.call_soon_threadsafe(self._abort, None)
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, seconds)

    def check(self, requests: Sequence[Request]) -> None:
        check_open(self.dead, stopping=self._draining)
        check_supported(self.name, self.capabilities, requests)
        for request in requests:
            check_room(request, widths(request, self.model), self.context_length)
            check_token_ids(request.sampling, self.model.vocab_size)
            if not self.client.samples and (setting := beyond(request.sampling)):
                raise ConfigError(
                    "vLLM was started without our sampler, and has no such setting of its own",
                    where=setting,
                    do=f"leave it out, or start vLLM with --logits-processors {SAMPLER}",
                )
        if len(self._open) + len(requests) > self.client.rows + self.client.queue:
            raise EngineBusy("the queue is full", expected=f"at most {self.client.queue} waiting", do="try again later")

    async def stream(
        self,
        requests: Sequence[Request],
        *,
        whole: bool = False,
        first: Callable[[float], None] = lambda seconds: None,
    ) -> AsyncGenerator[tuple[int, Event]]:
        """As `Backend.stream`. Raises EngineBusy, ConfigError."""
        self.check(requests)
        loop, began, notified = asyncio.get_running_loop(), time.monotonic(), False
        arrived: asyncio.Queue[tuple[int, list[Event]]] = asyncio.Queue()

        def publish(index: int, events: list[Event]) -> None:
            # The loop may be closed when the program ends: then no stream waits.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(arrived.put_nowait, (index, events))

        listeners = [
            _OpenRequest(one, Row(self.model, one), partial(publish, index), [] if whole else None)
            for index, one in enumerate(requests)
        ]
        with self._changed:
            self._open.update(listeners)
        try:
            self.client.loop.call_soon_threadsafe(self._begin, listeners)
        except RuntimeError:
            self._forget(listeners)
            raise EngineBusy("the server is stopping") from None
        waiting = len(listeners)
        try:
            while waiting:
                index, events = await arrived.get()
                if not notified:
                    notified = True
                    first(time.monotonic() - began)
                for event in events:
                    waiting -= isinstance(event, End)
                    yield index, event
        finally:
            with suppress(RuntimeError):
                self.client.loop.call_soon_threadsafe(self._abort, listeners)

    def counts(self) -> tuple[int, int]:
        """vLLM does not say which wait: those beyond its rows."""
        running = min(len(self._open), self.client.rows)
        return running, len(self._open) - running

    def cache_use(self) -> CacheUse:
        """hits, misses: soft prompts. vLLM does not say what it evicts, nor how large its cache is."""
        return self._uses

    # On the client's loop ------------------------------------------------------------------------------------------------

    def _begin(self, listeners: Sequence[_OpenRequest]) -> None:
        for listener in listeners:
            listener.task = self.client.loop.create_task(self._run(listener))
            # A task that is cancelled before its first step runs nothing of its own.
            listener.task.add_done_callback(partial(self._ended, listener))
        if self._stopping:
            self._abort(listeners)

    def _abort(self, listeners: Sequence[_OpenRequest] | None) -> None:
        """Those of a stream that was closed, or all."""
        for listener in list(self._open if listeners is None else listeners):
            if listener.task is not None:
                listener.task.cancel()

    async def _run(self, listener: _OpenRequest) -> End:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        request, row = listener.request, listener.row
        given = engine_input(self.model, request, self._dtype)
        params = SamplingParams(
            **parameters(request, self.model.stop_ids), output_kind=RequestOutputKind.DELTA, skip_clone=True
        )
        answers = self.client.engine.generate(given, params, uuid.uuid4().hex)
        async with aclosing(answers) as outputs:
            counted = False
            async for one in outputs:
                output = Output.of(one)
                if not counted:
                    counted = True
                    self._count(request, row, output.cached)
                events: list[Event] = list(row.read(output))
                if listener.held is not None:
                    listener.held += events
                elif events:
                    listener.publish(events)
                if row.end is not None:
                    return row.end
        raise SordinoError("vLLM ended the request without a reason")

    def _ended(self, listener: _OpenRequest, task: asyncio.Task[End]) -> None:
        """Its one End, in any case."""
        if task.cancelled():
            end = listener.row.ended("aborted")
        elif (error := task.exception()) is not None:
            end = listener.row.ended("failed", error=self._named(error))
        else:
            end = task.result()
        listener.publish([*(listener.held or ()), end])
        self._forget([listener])

    def _named(self, error: BaseException) -> SordinoError:
        if isinstance(error, SordinoError):
            return error
        if self.dead is not None:
            return EngineBusy("the engine has stopped after an error", got=type(error).__name__)
        log.error("a request failed in vLLM", exc_info=error)
        return SordinoError("the request failed in vLLM", got=str(error)[:300])

    def _forget(self, listeners: Sequence[_OpenRequest]) -> None:
        with self._changed:
            self._open.difference_update(listeners)
            self._changed.notify_all()

    def _count(self, request: Request, row: Row, cached: int) -> None:
        old, soft = self._uses, request.prompt is not None
        hit = soft and cached > 0
        self._uses = CacheUse(
            old.hits + hit, old.misses + (soft and not hit), 0, old.text_hits + (cached > row.width), 0, 0
        )
