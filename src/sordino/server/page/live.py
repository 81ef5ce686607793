"""What is live in a tab: the state that the lamp shows, and text as it is written.

Messages are JSON objects: from the page with a key `do` (see asking.py), to the page with a key `is`:

    state      model, loading, error, default, voices, broken: at once, and whenever one of them changes
    begun      id, dropped, seed
    text       id, column, text
    end        id, column, reason, tokens
    done       id: all columns have ended, or it was stopped
    measured   id, used, soft, room, total, dropped
    error      id (null where it belongs to none), message

They go over one WebSocket a tab. Where none gets through, the page posts what it asks to /ui/ask, hears the same messages in the
answer, a line each, and asks /ui/state for the state.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter, ValidationError
from starlette.requests import HTTPConnection

from sordino.engine.requests import Chunk
from sordino.errors import SordinoError
from sordino.server.errors import Refused, refused
from sordino.server.generation import stream
from sordino.server.page.messages import Asked, Measure, Stop, Write, measured, prepare
from sordino.server.prompts import Voice
from sordino.server.serving import Serving, serving_of, state_of

router = APIRouter(prefix="/ui", include_in_schema=False)

log = logging.getLogger("sordino.server")

_LOOK_SECONDS = 0.4
# What a tab may have asked for and not got yet.
_MOST_RUNNING = 16
_asked: TypeAdapter[Write | Measure | Stop] = TypeAdapter(Asked)

Told = dict[str, Any]


@router.get("/state")
def state(request: Request) -> Told:
    return told_state(request)


@router.post("/ask")
async def ask(request: Request, said: Annotated[Any, Body()]) -> StreamingResponse:
    async def lines() -> AsyncGenerator[bytes]:
        async with aclosing(answers(request, said)) as told:
            async for one in told:
                yield json.dumps(one).encode() + b"\n"

    # Proxies that collect an answer before they pass it on are asked not to.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), media_type="application/x-ndjson", headers=headers)


@router.websocket("/live")
async def live(socket: WebSocket) -> None:
    await socket.accept()
    watch: Watch = socket.app.state.watch
    tab = _Tab(socket)
    try:
        with watch.telling(tab.tell, socket):
            await tab.serve()
    except WebSocketDisconnect:
        pass
    finally:
        await tab.leave()


class _Tab:
    """One socket: what it asked for and has not ended."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self.running: dict[int, asyncio.Task[None]] = {}
        self.outbox: asyncio.Queue[Told] = asyncio.Queue()
        self.sending = asyncio.create_task(self._send())

    def tell(self, told: Told) -> None:
        self.outbox.put_nowait(told)

    async def serve(self) -> None:
        while True:
            try:
                said = await self.socket.receive_json()
            # No JSON, or JSON without end, or a frame of bytes.
            except (ValueError, KeyError, RecursionError):
                self.tell(_error(None, "a message is a JSON object"))
                continue
            number = said.get("id") if isinstance(said, dict) else None
            if isinstance(number, int) and said.get("do") == "stop":
                if number in self.running:
                    self.running[number].cancel()
            elif not isinstance(number, int) or number in self.running or len(self.running) >= _MOST_RUNNING:
                self.tell(_error(number, "id: a number of its own, and not too many at once"))
            else:
                task = self.running[number] = asyncio.create_task(self._answer(number, said))
                task.add_done_callback(partial(self._over, number))

    async def leave(self) -> None:
        tasks = [*self.running.values(), self.sending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _over(self, number: int, task: asyncio.Task[None]) -> None:
        del self.running[number]

    async def _answer(self, number: int, said: Told) -> None:
        try:
            async with aclosing(answers(self.socket, said)) as told:
                async for one in told:
                    self.tell(one)
        except asyncio.CancelledError:
            self.tell({"is": "done", "id": number})
            raise

    async def _send(self) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):
            while True:
                await self.socket.send_json(await self.outbox.get())


async def answers(connection: HTTPConnection, said: Any) -> AsyncGenerator[Told]:
    """What is told to one thing that was asked. Never raises because of what was asked."""
    number = said.get("id") if isinstance(said, dict) else None
    try:
        asked = _asked.validate_python(said)
        serving = serving_of(connection)
        if isinstance(asked, Measure):
            yield {"is": "measured", "id": asked.id, **await asyncio.to_thread(measured, serving, asked)}
        elif isinstance(asked, Write):
            async with aclosing(_written(serving, asked)) as told:
                async for one in told:
                    yield one
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        yield _error(number, f"{where}: {first['msg']}" if where else first["msg"])
    except Refused as error:
        yield _error(number, error.message)
    except SordinoError as error:
        yield _error(number, refused(error).message)
    except Exception:
        # A bug. The tab waits for an end, and gets one.
        log.exception("a page's request failed")
        yield _error(number, "an error of the server's own; its log says more")


async def _written(serving: Serving, asked: Write) -> AsyncGenerator[Told]:
    ready = await asyncio.to_thread(prepare, serving, asked)
    yield {"is": "begun", "id": asked.id, "dropped": ready.dropped, "seed": ready.seed}
    async with aclosing(stream(serving, "ui", ready.requests)) as events:
        async for column, event in events:
            if not isinstance(event, Chunk):
                yield {"is": "end", "id": asked.id, "column": column, "reason": event.reason, "tokens": event.n_new}
            elif event.text:
                yield {"is": "text", "id": asked.id, "column": column, "text": event.text}
    yield {"is": "done", "id": asked.id}


def _error(number: Any, message: str) -> Told:
    # Messages repeat what was asked, and half a surrogate pair of it is in no encoding.
    return {"is": "error", "id": number, "message": message.encode("utf-8", "backslashreplace").decode()}


# The state ---------------------------------------------------------------------------------------------------------------


def told_state(connection: HTTPConnection) -> Told:
    """What the lamp and the choice of a soft prompt show. Looks at the library: not for the event loop."""
    # First: who sees that nothing is being loaded any more must see what was.
    told = connection.app.state.loader.told()
    state = state_of(connection)
    voices = state.voices.all()
    return {
        "is": "state",
        "model": _model(state) if isinstance(state, Serving) else None,
        **told,
        "default": state.voices.default,
        "voices": [_voice(voice) for voice in voices if voice.usable],
        "count": len(voices),
        # Whoever shows the whole library sees by this that it has changed.
        "library": hash(tuple(_shown(voice) for voice in voices)),
    }


def _model(serving: Serving) -> Told:
    return {
        "name": serving.model,
        "key": serving.base.fingerprint or serving.base.id,
        "runner": serving.runner,
        "context": serving.context_length,
        "chat": bool(getattr(serving.base.tokenizer, "chat_template", None)),
    }


def _voice(voice: Voice) -> Told:
    entry = voice.entry
    return {
        "name": entry.name,
        "title": entry.metadata.name or entry.name,
        "tokens": entry.n_tokens,
        "components": entry.components,
    }


def _shown(voice: Voice) -> tuple[object, ...]:
    """What the table of soft prompts and the sliders of mixtures are drawn from: the file, and how well it fits the model."""
    entry = voice.entry
    return entry.name, entry.path, entry.revision, entry.error, voice.fit


Ear = Callable[[Told], None]


class Watch:
    """Looks at the state for all tabs together, as long as there are any, and tells them when it has changed."""

    def __init__(self) -> None:
        self._ears: set[Ear] = set()
        self._task: asyncio.Task[None] | None = None
        self._last: Told | None = None

    @property
    def tabs(self) -> int:
        return len(self._ears)

    @contextmanager
    def telling(self, ear: Ear, connection: HTTPConnection) -> Iterator[None]:
        """`ear` is told what is current at once, and what changes while this lasts."""
        self._ears.add(ear)
        if self._last is not None:
            ear(self._last)
        if self._task is None:
            self._task = asyncio.create_task(self._look(connection))
        try:
            yield
        finally:
            self._ears.discard(ear)
            if not self._ears and self._task is not None:
                self._task.cancel()
                self._task = self._last = None

    async def _look(self, connection: HTTPConnection) -> None:
        while True:
            began = time.monotonic()
            try:
                now = await asyncio.to_thread(told_state, connection)
            except Exception:
                # A bug, or a disk that is gone. The tabs go on showing what was, and hear of it when it is over.
                log.exception("the state cannot be told")
            else:
                self._tell(now)
            # A library on a slow disk is looked at less often: the engine has the first call on this process.
            await asyncio.sleep(max(_LOOK_SECONDS, 20 * (time.monotonic() - began)))

    def _tell(self, now: Told) -> None:
        if now == self._last:
            return
        self._last = now
        for ear in list(self._ears):
            ear(now)
