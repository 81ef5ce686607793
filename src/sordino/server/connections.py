"""Connections that cost descriptors and give nothing: request lines that never end, silence, answers that nobody reads.

uvicorn waits for ever for each of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from sordino.server.serving import ServerLimits

# Kept for models, files and what else a process opens.
_OTHER_FILES = 256


class Connections:
    """The open connections of one server, by the address that they came from, oldest first."""

    def __init__(self, limits: ServerLimits) -> None:
        self.limits = limits
        files = _most_files()
        self._most = files - _OTHER_FILES if files > 2 * _OTHER_FILES else max(16, files // 2)
        self._of_address: dict[str, dict[TimedConnection, None]] = {}

    def add(self, one: TimedConnection) -> None:
        """One more. Beyond the most of an address, or of all, the one that waits longest without a request is dropped; where none
        waits, the oldest WebSocket, whose page connects again.
        """
        own = self._of_address.setdefault(one.address, {})
        own[one] = None
        if len(own) > self.limits.connections:
            _drop_one(own, one)
        elif sum(map(len, self._of_address.values())) > self._most:
            # Of the address that has most of them.
            _drop_one(max(self._of_address.values(), key=len), one)

    def discard(self, one: TimedConnection) -> None:
        own = self._of_address.get(one.address, {})
        own.pop(one, None)
        if not own:
            self._of_address.pop(one.address, None)


class TimedConnection(H11Protocol):
    """A connection whose request has to arrive in time, and whose answer has to be read."""

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._connections, self.address, self.is_web_socket = connections, "", False
        self._headers, self._reading = _Deadline(self.drop), _Deadline(self.drop)

    @property
    def waits(self) -> bool:
        """Whether no request is under way."""
        return not self.is_web_socket and (self.cycle is None or self.cycle.response_complete)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._headers.set(self._connections.limits.header_seconds)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self.waits:
            self._headers.set(self._connections.limits.header_seconds)
        super().data_received(data)
        if not self.waits:
            self._headers.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading.set(self._connections.limits.read_seconds)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading.cancel()

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._headers.cancel()
        self.is_web_socket = True
        super().handle_websocket_upgrade(event)
        # Another protocol has the connection now; here it still counts until it is lost.
        protocol = self.transport.get_protocol()
        lost = protocol.connection_lost

        def counted_lost(exc: Exception | None) -> None:
            self._forget()
            lost(exc)

        protocol.connection_lost = counted_lost  # type: ignore[method-assign]

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close it now, whatever has not been sent."""
        self._forget()
        self.transport.abort()

    def _forget(self) -> None:
        self._headers.cancel()
        self._reading.cancel()
        self._connections.discard(self)


def http_protocol(limits: ServerLimits) -> Callable[..., TimedConnection]:
    """What uvicorn runs each connection of one server with."""
    return partial(TimedConnection, Connections(limits))


def _drop_one(own: dict[TimedConnection, None], newest: TimedConnection) -> None:
    waiting = (one for one in own if one.waits and one is not newest)
    web_sockets = (one for one in own if one.is_web_socket)
    next(chain(waiting, web_sockets), newest).drop()


class _Deadline:
    """Calls a function unless it is cancelled in time. No more than one call is due at once."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call, self._timer = call, cast(asyncio.TimerHandle | None, None)

    def set(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._call)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _most_files() -> int:
    """How many this process may have open."""
    try:
        import resource
    except ImportError:
        # Windows knows no such limit.
        return 8192
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 8192 if soft == resource.RLIM_INFINITY else soft
