"""The engine in this process: one thread steps it, any number of coroutines wait for events.

Only the thread touches the engine. Requests and aborts reach it through a queue; events go back through each stream's event loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sordino.engine.backend import Capabilities, check_open, check_supported
from sordino.engine.engine import Engine
from sordino.engine.requests import CacheUse, End, Event, Request
from sordino.errors import EngineBusy, SordinoError
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import Mixture

# An idle engine that had several requests at once before waits until none has come for this long: requests that come together then
# share every step from the first on. After a single request, the next one starts at once.
_GATHER_SECONDS = 0.003
_GATHER_AT_MOST = 0.03


@dataclass(eq=False)
class _Stream:
    """The open end of a `stream` call. loop: where its events go. first: called with the seconds until the first event."""

    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[tuple[int, Event | SordinoError]]
    first: Callable[[float], None]
    began: float
    notified: bool = False


@dataclass(eq=False)
class _Listener:
    """One request of a stream. index: its place there. number: the engine's, once submitted. held: events that wait for the
    request's end (None: each goes out at once)."""

    request: Request
    index: int
    stream: _Stream
    held: list[Event] | None
    number: int | None = None
    closed: bool = False


class EmbeddedEngine:
    """A `Backend`. crashed: called with a bug that ends the thread."""

    def __init__(self, engine: Engine, *, crashed: Callable[[BaseException], None] = lambda error: None) -> None:
        self._engine, self._crashed, model = engine, crashed, engine.model
        self.network = model if isinstance(model, BaseModel) else None
        self.name = engine.runner.name
        self.context_length = min(model.context_length, engine.runner.most_positions)
        self.capabilities = Capabilities(
            engine.runner.kinds | {Mixture.kind},
            log_probabilities=True,
            # An encoder predicts nothing of what it reads.
            scoring=model.encoder_decoder is None,
            strengths=engine.runner.strengths,
            hold=engine.runner.hold,
            branches=engine.limits.branches,
            grammars=True,
        )
        self._inbox: queue.SimpleQueue[_Listener | None] = queue.SimpleQueue()
        self._listeners: dict[int, _Listener] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopping = self._draining = False
        # Most requests at once since the engine last had nothing to do.
        self._together = 0
        self._over = threading.Event()
        self.dead: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self, *, finish: bool, seconds: float | None = None) -> bool:
        """End the thread: now, or once the accepted requests are over. Returns whether it ended within `seconds`."""
        self._draining = True
        if not finish:
            self._stopping = True
        self._inbox.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def check(self, requests: Sequence[Request]) -> None:
        """Raise EngineBusy, ConfigError, DoesNotFit or OutOfMemory where `stream` would, as far as that is known now."""
        check_open(self.dead, stopping=self._draining)
        check_supported(self.name, self.capabilities, requests)
        self._engine.check(requests)

    async def stream(
        self,
        requests: Sequence[Request],
        *,
        whole: bool = False,
        first: Callable[[float], None] = lambda seconds: None,
    ) -> AsyncGenerator[tuple[int, Event]]:
        """As `Backend.stream`. whole: wakes the event loop once per request, not once per token.

        Raises EngineBusy, ConfigError, DoesNotFit or OutOfMemory for what is not accepted.
        """
        check_open(self.dead, stopping=self._draining)
        check_supported(self.name, self.capabilities, requests)
        stream = _Stream(asyncio.get_running_loop(), asyncio.Queue(), first, time.monotonic())
        listeners = [_Listener(one, index, stream, [] if whole else None) for index, one in enumerate(requests)]
        for listener in listeners:
            self._inbox.put(listener)
        # The thread may have ended after the check above. What it found in the inbox, it answers.
        if self._over.is_set():
            raise EngineBusy("the server is stopping")
        waiting = len(listeners)
        try:
            while waiting:
                index, event = await stream.events.get()
                if isinstance(event, SordinoError):
                    raise event
                waiting -= isinstance(event, End)
                yield index, event
        finally:
            for listener in listeners:
                listener.closed = True
            self._inbox.put(None)

    def counts(self) -> tuple[int, int]:
        """(rows that run, requests that wait), as of now or a moment ago."""
        return self._engine.counts

    def cache_use(self) -> CacheUse:
        return self._engine.runner.cache_use()

    def _run(self) -> None:
        try:
            while not self._stopping:
                # Nothing new comes once it drains, and the wake-up may be gone from the inbox already.
                self._take(wait=not self._engine.busy and not self._draining)
                if self._draining and not self._engine.busy and self._inbox.empty():
                    break
                self._publish(self._engine.step() if self._engine.busy else [])
        except BaseException as error:
            # A bug. Open streams must not wait for ever.
            self.dead = error
            self._crashed(error)
        finally:
            self._stopping = True
            self._end_all()

    def _take(self, *, wait: bool) -> None:
        """Submit new requests, and abort those whose streams were closed. wait: until there is something to do."""
        gather_until = 0.0
        while True:
            try:
                if wait:
                    if (listener := self._inbox.get()) is None:
                        break
                    wait, alone = False, self._together < 2
                    gather_until = 0.0 if alone else time.monotonic() + _GATHER_AT_MOST
                    self._together = 0
                elif time.monotonic() < gather_until:
                    listener = self._inbox.get(timeout=_GATHER_SECONDS)
                elif self._inbox.empty():
                    break
                else:
                    listener = self._inbox.get_nowait()
            except queue.Empty:
                break
            if listener is not None and not listener.closed:
                self._submit(listener)
        for number, listener in list(self._listeners.items()):
            if listener.closed:
                del self._listeners[number]
                self._engine.abort(number)

    def _submit(self, listener: _Listener) -> None:
        try:
            listener.number = self._engine.submit(listener.request)
        except SordinoError as error:
            _deliver([(listener, error)])
            return
        except BaseException as error:
            # A bug, which ends the thread: this request is in no table yet.
            _deliver([(listener, EngineBusy("the engine has stopped after an error", got=error))])
            raise
        self._listeners[listener.number] = listener
        self._together = max(self._together, len(self._listeners))

    def _publish(self, events: list[tuple[int, Event]]) -> None:
        due: list[tuple[_Listener, Event | SordinoError]] = []
        for number, event in events:
            if (listener := self._listeners.get(number)) is None:
                continue
            stream = listener.stream
            if not stream.notified:
                stream.notified = True
                stream.first(time.monotonic() - stream.began)
            if isinstance(event, End):
                del self._listeners[number]
                due += [(listener, held) for held in listener.held or ()]
                due.append((listener, event))
            elif listener.held is None:
                due.append((listener, event))
            else:
                listener.held.append(event)
        _deliver(due)

    def _end_all(self) -> None:
        self._over.set()
        if self.dead is None:
            self._publish(self._engine.close())
        error = EngineBusy("the engine has stopped after an error", got=self.dead)
        _deliver([(listener, End("failed", 0, 0, error)) for listener in self._listeners.values()])
        while not self._inbox.empty():
            late = self._inbox.get()
            if late is not None:
                _deliver([(late, EngineBusy("the server is stopping"))])


def _deliver(due: Sequence[tuple[_Listener, Event | SordinoError]]) -> None:
    """Put events into the streams' queues, and wake each event loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Listener, Event | SordinoError]]] = {}
    for listener, event in due:
        by_loop.setdefault(listener.stream.loop, []).append((listener, event))
    for loop, batch in by_loop.items():
        # The loop may be closed when the program ends: then no stream waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_put, batch)


def _put(due: Sequence[tuple[_Listener, Event | SordinoError]]) -> None:
    for listener, event in due:
        listener.stream.events.put_nowait((listener.index, event))
