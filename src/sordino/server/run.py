"""The HTTP server in this process, from its first request to its end."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from sordino.server.addresses import Access
from sordino.server.app import create_app
from sordino.server.serving import Idle, ServerLimits, Serving
from sordino.server.start import Models

if TYPE_CHECKING:
    from types import FrameType

_LAST_EVENTS_SECONDS = 1.0


def run_server(
    listening: socket.socket,
    serving: Serving | Idle,
    models: Models,
    access: Access,
    page: Callable[[FastAPI], None] | None,
    *,
    on_stop: Callable[[], None],
) -> None:
    """Answer requests until a signal comes. page: adds the web page's routes. on_stop: is called at the first signal."""
    app = create_app(
        serving,
        models=models,
        page=page,
        api_key=access.api_key,
        allowed_hosts=access.allowed_hosts,
        origins=access.origins,
    )
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=None,
        ws_max_size=ServerLimits().body,
    )
    server = uvicorn.Server(config)
    _end_in_two(server, models, on_stop)
    server.run(sockets=[listening])


def log_requests() -> None:
    """A line of JSON on standard error for each request, without texts."""
    requests = logging.getLogger("sordino.requests")
    requests.addHandler(logging.StreamHandler())
    requests.setLevel(logging.INFO)


def _end_in_two(server: uvicorn.Server, models: Models, on_stop: Callable[[], None]) -> None:
    """First signal: nothing new is taken, running requests finish. Second: they end now, each with a last event."""

    def handled(number: int, frame: FrameType | None) -> None:
        if server.should_exit:
            models.stop_now()
            # Requests that are cut off now are cut off on purpose: no tracebacks of that.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            # The last events need a moment to go out. A client that does not read them is not waited for.
            threading.Timer(_LAST_EVENTS_SECONDS, setattr, (server, "force_exit", True)).start()
        else:
            on_stop()
        server.should_exit = True

    server.handle_exit = handled  # type: ignore[method-assign, assignment]
