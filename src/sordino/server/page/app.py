"""The page: its files, its login, the programs that call the API, and its place in the server's application."""

from __future__ import annotations

import hmac
import threading
import time
import webbrowser
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import platformdirs
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse
from pydantic import StrictStr
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from sordino.engine.config import EngineOptions
from sordino.errors import SordinoError
from sordino.library.gallery.added import Galleries
from sordino.models import files
from sordino.server.bodies import StrictBody
from sordino.server.errors import Refused
from sordino.server.guard import COOKIE, cookie_of
from sordino.server.page import (
    cards,
    find,
    inspection,
    installs,
    live,
    loading,
    models,
    prompts,
    starters,
    stories,
    training,
)
from sordino.server.page.state import StatePublisher
from sordino.server.serving import Idle
from sordino.server.start import Models
from sordino.training import queue

STATIC = Path(str(resources.files("sordino.server.page").joinpath("static")))
# Nothing is loaded from elsewhere, and no text can become a script. Notebooks show the page in a frame.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; base-uri 'self'; object-src 'none'; "
    "form-action 'self'; frame-ancestors 'self' https://*.googleusercontent.com https://colab.research.google.com"
)

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> FileResponse:
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    return FileResponse(STATIC / "index.html", headers=headers)


class LoginForm(StrictBody):
    key: StrictStr


@router.post("/ui/login")
async def login(request: Request, form: LoginForm, response: Response) -> dict[str, Any]:
    """A cookie for the key. Browsers send it with every request of this page, and of no other."""
    api_key: str | None = request.app.state.api_key
    if api_key is None:
        return {}
    if request.app.state.wrong_keys.many_wait(request.scope):
        raise Refused(429, "too many wrong keys from this address: try again in a moment", field="key")
    if not hmac.compare_digest(form.key.strip().encode("utf-8", "replace"), api_key.encode()):
        await request.app.state.wrong_keys.wait(request.scope)
        raise Refused(401, "this is not the key that the server was started with", field="key")
    response.set_cookie(
        COOKIE,
        cookie_of(api_key),
        max_age=365 * 86400,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return {}


class _Files(StaticFiles):
    """Browsers revalidate them at every visit, so that files of two versions are never mixed."""

    def file_response(self, *given: Any, **named: Any) -> Response:
        response = super().file_response(*given, **named)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


# Other programs ----------------------------------------------------------------------------------------------------------

_APIS = (("/v1/", "OpenAI"), ("/api/extra/", "KoboldCpp"), ("/api/", "KoboldAI"))
_RECENT_SECONDS = 600.0
_MOST_CLIENTS = 100


@dataclass
class _ClientUse:
    requests: int = 0
    last: float = 0.0


class ClientLog:
    """Middleware that counts API requests by address, program and API: kept in memory, and never a text."""

    def __init__(self, app: ASGIApp, clients: OrderedDict[tuple[str, str, str], _ClientUse]) -> None:
        self._app, self._clients = app, clients

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._count(scope)
        await self._app(scope, receive, send)

    def _count(self, scope: Scope) -> None:
        api = next((name for start, name in _APIS if scope["path"].startswith(start)), None)
        headers = dict(scope["headers"])
        # The page itself calls some of these routes; browsers mark such requests.
        if api is None or headers.get(b"sec-fetch-site") == b"same-origin":
            return
        agent = headers.get(b"user-agent", b"").decode("latin-1")[:80]
        key = (scope["client"][0] if scope.get("client") else "", agent, api)
        use = self._clients.setdefault(key, _ClientUse())
        use.requests, use.last = use.requests + 1, time.monotonic()
        self._clients.move_to_end(key)
        while len(self._clients) > _MOST_CLIENTS:
            self._clients.popitem(last=False)


@router.get("/ui/clients")
async def clients(request: Request) -> dict[str, Any]:
    """tabs: of this page. key: whether programs need one. clients: those that called the API in the last ten minutes, the latest
    first.
    """
    state, now = request.app.state, time.monotonic()
    recent = [
        {"host": host, "agent": agent, "api": api, "requests": use.requests, "ago": now - use.last}
        for (host, agent, api), use in reversed(state.clients.items())
        if now - use.last < _RECENT_SECONDS
    ]
    return {"tabs": state.publisher.tabs, "key": state.api_key is not None, "clients": recent}


# The application ---------------------------------------------------------------------------------------------------------


class Page:
    """The page of one server. folder: for stories and training runs; by default the user's data folder."""

    def __init__(self, server: Models, idle: Idle, options: EngineOptions, folder: Path | None = None) -> None:
        place = platformdirs.user_data_path("sordino", appauthor=False) if folder is None else folder
        self._server, self._idle, self._options = server, idle, options
        self._recent = loading.Recent(place / "models.json")
        self._stories, self._jobs = stories.Stories(place / "stories"), queue.Jobs(place / "training")
        self._galleries = Galleries(place / "galleries")

    def remembered(self) -> str | None:
        """The model that was served last, if it still exists."""
        try:
            name = self._recent.names()[0]
            files.resolve(name)
        except (IndexError, SordinoError):
            return None
        return name

    def add(self, app: FastAPI) -> None:
        """Add the page's routes and their shared state to the application."""
        announce = partial(setattr, app.state, "serving")
        app.state.loader = loading.Loader(self._server, self._idle, announce, self._recent, self._options)
        app.state.publisher = StatePublisher()
        app.state.inspections, app.state.clients = OrderedDict(), OrderedDict()
        app.state.stories, app.state.jobs = self._stories, self._jobs
        app.state.galleries, app.state.installs = self._galleries, installs.Installs()
        app.add_middleware(ClientLog, clients=app.state.clients)
        app.include_router(router)
        for module in (live, stories, starters, models, prompts, find, inspection, cards, training):
            app.include_router(module.router)
        app.mount("/ui/static", _Files(directory=STATIC), name="static")

    def start(self, address: str | None = None, *, served: str | None = None) -> None:
        """Start the training queue; open `address` in a browser; remember the model that is served."""
        if served is not None:
            self._recent.add(served)
        self._jobs.start()
        if address is not None:
            # The server listens already: the browser's requests wait until it answers.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    def close(self) -> None:
        self._jobs.close()
