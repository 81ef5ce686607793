"""The HTTP server in this process, from its first request to its end."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn

from sordino.errors import ConfigError, SordinoError
from sordino.models.bundled import DEFAULT_MODEL
from sordino.server.addresses import Access, address_of, near
from sordino.server.app import create_app
from sordino.server.connections import http_protocol
from sordino.server.memory import leave_out_of_collections
from sordino.server.options import ServedOptions
from sordino.server.prompts import ServedPrompts
from sordino.server.serving import Idle, ServerLimits, Serving
from sordino.server.start import Models, Opener

if TYPE_CHECKING:
    from types import FrameType

    from sordino.server.page.app import Page

_LAST_EVENTS_SECONDS = 1.0


@dataclass(frozen=True)
class Service:
    """A server before its first request. first: what it serves, by the user's name `name`. page: None where it has none."""

    models: Models
    first: Serving | Idle
    name: str | None
    page: Page | None

    def run(
        self, listening: socket.socket, access: Access, *, show_page: bool = False, on_stop: Callable[[], None]
    ) -> None:
        """Answer requests until a signal comes. show_page: in a browser. on_stop: is called at the first signal."""
        if self.page is not None:
            served = None if isinstance(self.first, Idle) else self.name
            self.page.start(near(address_of(listening)) if show_page else None, served=served)
        app = create_app(self.first, access, models=self.models, page=self.page.add if self.page else None)
        config = uvicorn.Config(
            app,
            # uvicorn takes any callable that makes a protocol.
            http=http_protocol(ServerLimits()),  # type: ignore[arg-type]
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=None,
            ws_max_size=ServerLimits().body,
        )
        server = uvicorn.Server(config)
        _end_in_two(server, self.models, on_stop)
        leave_out_of_collections()
        server.run(sockets=[listening])


@contextmanager
def service(
    opener: Opener,
    model: str,
    served: ServedOptions,
    *,
    with_page: bool,
    warn: Callable[[str], None],
) -> Iterator[Service]:
    """Open what is served. model: "" for the one that was served last, or without a page for the bundled one.

    with_page: its packages must be installed. warn: called with a line where the model that was served last can no longer be
    loaded, as another can be chosen on the page. Raises SordinoError.
    """
    models = Models(opener.open, served.others)
    idle = Idle(ServedPrompts(None, opener.library), opener.metrics, ServerLimits())
    page = None
    if with_page:
        from sordino.server.page.app import Page

        page = Page(models, idle, opener.options)
    remembered = page.remembered() if page is not None and not model else None
    name = model or (DEFAULT_MODEL if page is None else remembered)
    if name is None and served.soft_prompt is not None:
        raise ConfigError("a default soft prompt needs a model", where="--soft-prompt", do="add --model")
    # Headers are read while a model loads.
    scanning = threading.Thread(target=opener.library.scan, daemon=True)
    scanning.start()
    with closing(models), closing(page) if page else nullcontext():
        first: Serving | Idle = idle
        try:
            first = idle if name is None else models.first(name)
        except SordinoError as error:
            if remembered is None:
                raise
            warn(f"the model that was served last cannot be loaded: {error.message}")
        scanning.join()
        if served.soft_prompt is not None:
            first.prompts.set_default(served.soft_prompt)
        yield Service(models, first, name, page)


def log_requests() -> None:
    """A line of JSON on standard error for each request, without texts."""
    requests = logging.getLogger("sordino.requests")
    requests.addHandler(logging.StreamHandler())
    requests.setLevel(logging.INFO)


def _end_in_two(server: uvicorn.Server, models: Models, on_stop: Callable[[], None]) -> None:
    """First signal: nothing new is taken, running requests finish. Second: they end now, each with a last event."""

    def handled(number: int, frame: FrameType | None) -> None:
        # Before anything else: the second may come while the first is told.
        again, server.should_exit = server.should_exit, True
        if again:
            models.stop_now()
            # Requests that are cut off now are cut off on purpose: no tracebacks of that.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            # The last events need a moment to go out. A client that does not read them is not waited for.
            threading.Timer(_LAST_EVENTS_SECONDS, setattr, (server, "force_exit", True)).start()
        else:
            on_stop()

    server.handle_exit = handled  # type: ignore[method-assign, assignment]
