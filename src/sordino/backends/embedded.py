"""The engine in this process: one thread that steps it, any number of coroutines that wait for events.

The thread alone touches the engine. Requests and aborts reach it through a queue; events go back through each caller's loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass

from sordino.engine.engine import Engine
from sordino.engine.requests import Chunk, End, Event, Request
from sordino.errors import EngineBusy, SordinoError


@dataclass(eq=False)
class _Listener:
    """A caller that waits. number: the engine's, once the request was taken."""

    request: Request
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event | SordinoError]
    number: int | None = None
    left: bool = False

    def tell(self, event: Event | SordinoError) -> None:
        # The loop may be gone when the program ends: then nobody waits.
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class EmbeddedEngine:
    """`events` may be called from any loop. `start` before, `stop` at the end."""

    def __init__(self, engine: Engine, *, crashed: Callable[[BaseException], None] = lambda error: None) -> None:
        self._engine, self._crashed = engine, crashed
        self._inbox: queue.SimpleQueue[_Listener | None] = queue.SimpleQueue()
        self._listeners: dict[int, _Listener] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopping = self._draining = False
        self._over = threading.Event()
        self.dead: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self, *, finish: bool, seconds: float | None = None) -> bool:
        """End the thread: now, or once the requests that were taken are over. Whether it ended within `seconds`."""
        self._draining = True
        if not finish:
            self._stopping = True
        self._inbox.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def hurry(self) -> None:
        """As `stop` without finishing, and without waiting for it: may be called from a signal's handler."""
        self._draining = self._stopping = True
        self._inbox.put(None)

    def check(self, requests: Sequence[Request]) -> None:
        """Raises what would become of these, all of them together, as far as it is known now. For answers that begin before events.

        EngineBusy, ConfigError, DoesNotFit, OutOfMemory.
        """
        self._refuse_when_over()
        self._engine.check(requests)

    async def events(self, request: Request) -> AsyncGenerator[Event]:
        """The request's events, an `End` last. Leaving early, or being cancelled, ends the request within a step.

        Raises EngineBusy, ConfigError, DoesNotFit, OutOfMemory for what was not taken.
        """
        self._refuse_when_over()
        listener = _Listener(request, asyncio.get_running_loop(), asyncio.Queue())
        self._inbox.put(listener)
        # The thread may have ended between the question and the put; what was put before its end is answered by it.
        if self._over.is_set():
            raise EngineBusy("the server is stopping")
        try:
            while True:
                event = await listener.events.get()
                if isinstance(event, SordinoError):
                    raise event
                yield event
                if isinstance(event, End):
                    return
        finally:
            listener.left = True
            self._inbox.put(None)

    async def complete(self, request: Request) -> tuple[str, list[Chunk], End]:
        """The whole text, its chunks, and how it ended."""
        chunks: list[Chunk] = []
        async with aclosing(self.events(request)) as events:
            async for event in events:
                if isinstance(event, End):
                    return "".join(chunk.text for chunk in chunks), chunks, event
                chunks.append(event)
        raise AssertionError("a request ends with its End")

    def counts(self) -> tuple[int, int]:
        """(rows that run, requests that wait), as of now or a moment ago."""
        return self._engine.counts

    def _refuse_when_over(self) -> None:
        if self.dead is not None:
            raise EngineBusy("the engine has stopped after an error")
        if self._draining:
            raise EngineBusy("the server is stopping, or changing its model", do="ask again in a moment")

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._take(wait=not self._engine.busy)
                if self._draining and not self._engine.busy and self._inbox.empty():
                    break
                self._tell(self._engine.step() if self._engine.busy else [])
        except BaseException as error:
            # A bug. Those who wait must not wait for ever.
            self.dead = error
            self._crashed(error)
        finally:
            self._stopping = True
            self._end_all()

    def _take(self, *, wait: bool) -> None:
        """New requests into the engine, and those out whose callers have left."""
        while True:
            try:
                listener = self._inbox.get(block=wait)
            except queue.Empty:
                break
            wait = False
            if listener is not None and not listener.left:
                self._submit(listener)
        for number, listener in list(self._listeners.items()):
            if listener.left:
                del self._listeners[number]
                self._engine.abort(number)

    def _submit(self, listener: _Listener) -> None:
        try:
            listener.number = self._engine.submit(listener.request)
        except SordinoError as error:
            listener.tell(error)
            return
        except BaseException as error:
            # A bug, and the end of the thread: this one is in no table yet.
            listener.tell(EngineBusy("the engine has stopped after an error", got=error))
            raise
        self._listeners[listener.number] = listener

    def _tell(self, events: list[tuple[int, Event]]) -> None:
        for number, event in events:
            if (listener := self._listeners.get(number)) is not None:
                listener.tell(event)
                if isinstance(event, End):
                    del self._listeners[number]

    def _end_all(self) -> None:
        self._over.set()
        if self.dead is None:
            self._tell(self._engine.close())
        for listener in self._listeners.values():
            error = EngineBusy("the engine has stopped after an error", got=self.dead)
            listener.tell(End("failed", 0, 0, error))
        while not self._inbox.empty():
            late = self._inbox.get()
            if late is not None:
                late.tell(EngineBusy("the server is stopping"))
