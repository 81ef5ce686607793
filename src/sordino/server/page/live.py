"""The connection of a tab: the server's state whenever it changes, and text as it is generated.

Messages are JSON objects: from the page with a key `do` (see messages.py), to the page with a key `is`:

    state      model, loading, error, loads, default, left_out, prompts, offered_hold, count, library: at once, and when one
               of them changes
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
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter, ValidationError
from starlette.requests import HTTPConnection

from sordino.engine.requests import Chunk
from sordino.errors import SordinoError
from sordino.server.bodies import STREAM_HEADERS
from sordino.server.errors import Refused, refused, shown
from sordino.server.generation import Generation
from sordino.server.page.messages import Measure, Stop, TabMessage, Write, measured, prepare
from sordino.server.page.state import Payload, StatePublisher, page_state
from sordino.server.serving import Serving, serving_of

router = APIRouter(prefix="/ui", include_in_schema=False)

log = logging.getLogger("sordino.server")

# Requests of one tab at once; messages that wait for a tab to read them.
_MOST_RUNNING, _MOST_UNREAD = 16, 1024
_tab_message: TypeAdapter[Write | Measure | Stop] = TypeAdapter(TabMessage)


@router.get("/state")
def state(request: Request) -> Response:
    return Response(page_state(request), media_type="application/json")


@router.post("/ask")
async def ask(request: Request, message: Annotated[Any, Body()]) -> StreamingResponse:
    async def lines() -> AsyncGenerator[bytes]:
        async with aclosing(answers(request, message)) as payloads:
            async for payload in payloads:
                yield json.dumps(payload).encode() + b"\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson", headers=STREAM_HEADERS)


@router.websocket("/live")
async def live(socket: WebSocket) -> None:
    await socket.accept()
    publisher: StatePublisher = socket.app.state.publisher
    tab = _Tab(socket)
    try:
        with publisher.subscribed(tab.send, socket):
            await tab.until_over()
    except WebSocketDisconnect:
        pass
    finally:
        await tab.close()


class _Tab:
    """One socket and its running requests."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self.running: dict[int, asyncio.Task[None]] = {}
        self.outbox: asyncio.Queue[Payload | str] = asyncio.Queue(_MOST_UNREAD)
        self.sending, self.reader = asyncio.create_task(self._send_all()), asyncio.create_task(self.serve())

    def send(self, payload: Payload | str) -> None:
        """payload: a message, or the JSON of one."""
        try:
            self.outbox.put_nowait(payload)
        except asyncio.QueueFull:
            # A tab that does not read what it asks for.
            self.reader.cancel()

    async def until_over(self) -> None:
        """Until its browser closes it, or does not read any more."""
        await asyncio.wait({self.reader})
        if not self.reader.cancelled():
            self.reader.result()

    async def serve(self) -> None:
        while True:
            try:
                message = await self.socket.receive_json()
            # No JSON, or nested too deep, or a binary frame.
            except (ValueError, KeyError, RecursionError):
                self.send(_error(None, "a message is a JSON object"))
                continue
            number = _number_of(message)
            if number is not None and message.get("do") == "stop":
                if number in self.running:
                    self.running[number].cancel()
            elif number is None or number in self.running or len(self.running) >= _MOST_RUNNING:
                self.send(
                    _error(number, f"id: an unused number was expected, and at most {_MOST_RUNNING} requests at once")
                )
            else:
                task = self.running[number] = asyncio.create_task(self._answer(number, message))
                task.add_done_callback(partial(self.running.pop, number))

    async def close(self) -> None:
        tasks = [*self.running.values(), self.sending, self.reader]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
                payload = await self.outbox.get()
                await self.socket.send_text(payload if isinstance(payload, str) else json.dumps(payload))


async def answers(connection: HTTPConnection, message: Any) -> AsyncGenerator[Payload]:
    """The answers to one message. An error is an answer too, and never raised."""
    number = _number_of(message)
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


def _number_of(message: Any) -> int | None:
    """A message's id, which its answers repeat; None where it has none. NaN and lone surrogates could not be sent back."""
    number = message.get("id") if isinstance(message, dict) else None
    return number if type(number) is int else None


def _error(number: int | None, message: str) -> Payload:
    return {"is": "error", "id": number, "message": shown(message)}
