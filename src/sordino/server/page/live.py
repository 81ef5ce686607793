"""The connection of a tab: the server's state whenever it changes, and text as it is generated.

Messages are JSON objects: from the page with a key `do` (see messages.py), to the page with a key `is`:

    state      model, loading, error, default, prompts, offered_hold, count, library: at once, and whenever one of them changes
    begun      id, dropped, seed
    text       id, column, text
    end        id, column, reason, tokens
    done       id: all columns have ended, or it was stopped
    measured   id, used, soft, room, total, dropped
    error      id (null where it belongs to none), message

A tab has one WebSocket for them. Where none gets through, the page posts its messages to /ui/ask, reads the answers from the
response, one on each line, and polls /ui/state.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter, ValidationError
from starlette.requests import HTTPConnection

from sordino.engine.requests import Chunk
from sordino.errors import SordinoError
from sordino.prompts.attention import OFFERED_HOLD
from sordino.server.errors import Refused, refused
from sordino.server.generation import Generation
from sordino.server.page.messages import Measure, Stop, TabMessage, Write, measured, prepare
from sordino.server.prompts import ServedPrompt, model_key
from sordino.server.serving import Serving, serving_of, state_of

router = APIRouter(prefix="/ui", include_in_schema=False)

log = logging.getLogger("sordino.server")

_POLL_SECONDS = 0.4
# Requests of one tab at once.
_MOST_RUNNING = 16
_tab_message: TypeAdapter[Write | Measure | Stop] = TypeAdapter(TabMessage)

Payload = dict[str, Any]


@router.get("/state")
def state(request: Request) -> Payload:
    return page_state(request)


@router.post("/ask")
async def ask(request: Request, message: Annotated[Any, Body()]) -> StreamingResponse:
    async def lines() -> AsyncGenerator[bytes]:
        async with aclosing(answers(request, message)) as payloads:
            async for payload in payloads:
                yield json.dumps(payload).encode() + b"\n"

    # Without this header some proxies collect the whole response before they pass it on.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), media_type="application/x-ndjson", headers=headers)


@router.websocket("/live")
async def live(socket: WebSocket) -> None:
    await socket.accept()
    publisher: StatePublisher = socket.app.state.publisher
    tab = _Tab(socket)
    try:
        with publisher.subscribed(tab.send, socket):
            await tab.serve()
    except WebSocketDisconnect:
        pass
    finally:
        await tab.close()


class _Tab:
    """One socket and its running requests."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self.running: dict[int, asyncio.Task[None]] = {}
        self.outbox: asyncio.Queue[Payload] = asyncio.Queue()
        self.sending = asyncio.create_task(self._send_all())

    def send(self, payload: Payload) -> None:
        self.outbox.put_nowait(payload)

    async def serve(self) -> None:
        while True:
            try:
                message = await self.socket.receive_json()
            # No JSON, or nested too deep, or a binary frame.
            except (ValueError, KeyError, RecursionError):
                self.send(_error(None, "a message is a JSON object"))
                continue
            number = message.get("id") if isinstance(message, dict) else None
            if isinstance(number, int) and message.get("do") == "stop":
                if number in self.running:
                    self.running[number].cancel()
            elif not isinstance(number, int) or number in self.running or len(self.running) >= _MOST_RUNNING:
                self.send(
                    _error(number, f"id: an unused number was expected, and at most {_MOST_RUNNING} requests at once")
                )
            else:
                task = self.running[number] = asyncio.create_task(self._answer(number, message))
                task.add_done_callback(partial(self._forget, number))

    async def close(self) -> None:
        tasks = [*self.running.values(), self.sending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, number: int, task: asyncio.Task[None]) -> None:
        del self.running[number]

    async def _answer(self, number: int, message: Payload) -> None:
        try:
            async with aclosing(answers(self.socket, message)) as payloads:
                async for payload in payloads:
                    self.send(payload)
        except asyncio.CancelledError:
            self.send({"is": "done", "id": number})
            raise

    async def _send_all(self) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):
            while True:
                await self.socket.send_json(await self.outbox.get())


async def answers(connection: HTTPConnection, message: Any) -> AsyncGenerator[Payload]:
    """The answers to one message. An error is an answer too, and never raised."""
    number = message.get("id") if isinstance(message, dict) else None
    try:
        body = _tab_message.validate_python(message)
        serving = serving_of(connection)
        if isinstance(body, Measure):
            yield {"is": "measured", "id": body.id, **await asyncio.to_thread(measured, serving, body)}
        elif isinstance(body, Write):
            async with aclosing(_written(serving, body)) as payloads:
                async for payload in payloads:
                    yield payload
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
        log.exception("a message of the page could not be answered")
        yield _error(number, "an internal error of the server: see its log")


async def _written(serving: Serving, body: Write) -> AsyncGenerator[Payload]:
    prepared = await asyncio.to_thread(prepare, serving, body)
    yield {"is": "begun", "id": body.id, "dropped": prepared.dropped, "seed": prepared.seed}
    async with aclosing(Generation(serving, "ui", prepared.requests).stream()) as events:
        async for column, event in events:
            if not isinstance(event, Chunk):
                yield {"is": "end", "id": body.id, "column": column, "reason": event.reason, "tokens": event.n_new}
            elif event.text:
                yield {"is": "text", "id": body.id, "column": column, "text": event.text}
    yield {"is": "done", "id": body.id}


def _error(number: Any, message: str) -> Payload:
    # Messages repeat parts of the request, and a lone surrogate has no encoding.
    return {"is": "error", "id": number, "message": message.encode("utf-8", "backslashreplace").decode()}


# The state ---------------------------------------------------------------------------------------------------------------


def page_state(connection: HTTPConnection) -> Payload:
    """What the status line and the choice of a soft prompt show. Scans the library: not for the event loop."""
    # Before the state: a tab that learns that loading has ended must see its result.
    loading = connection.app.state.loader.status()
    state = state_of(connection)
    prompts = state.prompts.all()
    return {
        "is": "state",
        "model": _model(state) if isinstance(state, Serving) else None,
        **loading,
        "default": state.prompts.default,
        "prompts": [_summary(one) for one in prompts if one.usable],
        "offered_hold": OFFERED_HOLD,
        "count": len(prompts),
        # It changes with anything that the table of the library shows.
        "library": hash(tuple(_table_row(one) for one in prompts)),
    }


def _model(serving: Serving) -> Payload:
    return {
        "name": serving.model,
        "key": model_key(serving.base),
        "runner": serving.runner,
        "context": serving.context_length,
        "hold": serving.backend.capabilities.hold,
        "strength": serving.backend.capabilities.strength,
        "chat": bool(getattr(serving.base.tokenizer, "chat_template", None)),
    }


def _summary(prompt: ServedPrompt) -> Payload:
    entry = prompt.entry
    return {
        "name": entry.name,
        "title": entry.metadata.name or entry.name,
        "tokens": entry.n_tokens,
        "kind": entry.kind,
        "components": entry.components,
        # Of each component of a mixture, or of the one prompt.
        "attention": [asdict(part.metadata.attention) for part in entry.parts],
    }


def _table_row(prompt: ServedPrompt) -> tuple[object, ...]:
    """What the table of soft prompts and the sliders of mixtures show: the file, and how well it fits the model."""
    entry = prompt.entry
    return entry.name, entry.path, entry.revision, entry.error, prompt.fit


Subscriber = Callable[[Payload], None]


class StatePublisher:
    """Polls the state once for all tabs, while there are any, and publishes what has changed."""

    def __init__(self) -> None:
        self._subscribers: set[Subscriber] = set()
        self._task: asyncio.Task[None] | None = None
        self._last: Payload | None = None

    @property
    def tabs(self) -> int:
        return len(self._subscribers)

    @contextmanager
    def subscribed(self, subscriber: Subscriber, connection: HTTPConnection) -> Iterator[None]:
        """Within this block `subscriber` is called with the current state, and with each later one."""
        self._subscribers.add(subscriber)
        if self._last is not None:
            subscriber(self._last)
        if self._task is None:
            self._task = asyncio.create_task(self._poll(connection))
        try:
            yield
        finally:
            self._subscribers.discard(subscriber)
            if not self._subscribers and self._task is not None:
                self._task.cancel()
                self._task = self._last = None

    async def _poll(self, connection: HTTPConnection) -> None:
        while True:
            began = time.monotonic()
            try:
                current = await asyncio.to_thread(page_state, connection)
            except Exception:
                # A bug, or a disk that fails. The tabs keep the last state until the next one can be read.
                log.exception("the state of the server cannot be read")
            else:
                if current != self._last:
                    self._last = current
                    for subscriber in list(self._subscribers):
                        subscriber(current)
            # A library on a slow disk is scanned less often: the engine comes first in this process.
            await asyncio.sleep(max(_POLL_SECONDS, 20 * (time.monotonic() - began)))
