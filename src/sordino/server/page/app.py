"""The page: its files, its login, and its place in the server's application."""

from __future__ import annotations

import asyncio
import hmac
import threading
import webbrowser
from collections import OrderedDict
from importlib import resources
from pathlib import Path
from typing import Any

import platformdirs
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, StrictStr
from starlette.staticfiles import StaticFiles

from sordino.errors import SordinoError
from sordino.models import files
from sordino.server.errors import Refused
from sordino.server.guard import COOKIE, cookie_of
from sordino.server.page import callers, cards, inspection, live, models, prompts, stories, training
from sordino.server.serving import Idle, Serving
from sordino.server.start import Models
from sordino.training import queue

STATIC = Path(str(resources.files("sordino.server.page").joinpath("static")))
# Nothing from elsewhere is loaded, and no text can become a script. Notebooks show the page in a frame.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; base-uri 'self'; object-src 'none'; "
    "form-action 'self'; frame-ancestors 'self' https://*.googleusercontent.com https://colab.research.google.com"
)
_WRONG_KEY_SECONDS = 0.5

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> FileResponse:
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    return FileResponse(STATIC / "index.html", headers=headers)


class Key(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: StrictStr


@router.post("/ui/login")
async def login(request: Request, said: Key, response: Response) -> dict[str, Any]:
    """A cookie for the key. Browsers send it with every request of this page, and of no other."""
    api_key: str | None = request.app.state.api_key
    if api_key is None:
        return {}
    if not hmac.compare_digest(said.key.strip().encode("utf-8", "replace"), api_key.encode()):
        await asyncio.sleep(_WRONG_KEY_SECONDS)
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
    """Asked for again at every visit, so that a page of an older version is never mixed with this one."""

    def file_response(self, *given: Any, **named: Any) -> Response:
        response = super().file_response(*given, **named)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


class Page:
    """The page of one server. folder: where stories and training runs are kept; by default in the user's data folder."""

    def __init__(
        self,
        server: Models,
        idle: Idle,
        runner: str = "auto",
        api_key: str | None = None,
        folder: Path | None = None,
    ) -> None:
        place = platformdirs.user_data_path("sordino", appauthor=False) if folder is None else folder
        self._server, self._idle, self._runner, self._api_key = server, idle, runner, api_key
        self._recent = models.Recent(place / "models.json")
        self._stories, self._jobs = stories.Stories(place / "stories"), queue.Jobs(place / "training")

    def remembered(self) -> str | None:
        """The model that was served last, if it is still there."""
        for name in self._recent.names()[:1]:
            try:
                files.resolve(name)
            except SordinoError:
                continue
            return name
        return None

    def add(self, app: FastAPI) -> None:
        """Its routes and what they share."""

        def announce(serving: Serving | Idle) -> None:
            app.state.serving = serving

        app.state.loader = models.Loader(self._server, self._idle, announce, self._recent, self._runner)
        app.state.api_key = self._api_key
        app.state.watch, app.state.words, app.state.insides = live.Watch(), OrderedDict(), OrderedDict()
        app.state.stories, app.state.jobs = self._stories, self._jobs
        app.state.callers = callers.Callers()
        app.add_middleware(callers.Seen, callers=app.state.callers)
        for part in (
            router,
            *(one.router for one in (live, stories, models, prompts, inspection, cards, callers, training)),
        ):
            app.include_router(part)
        app.mount("/ui/static", _Files(directory=STATIC), name="static")

    def start(self, address: str | None = None, *, served: str | None = None) -> None:
        """Watch the training runs; show the page at `address` in a browser; remember what is served."""
        if served is not None:
            self._recent.add(served)
        self._jobs.start()
        if address is not None:
            # The server listens already: what a browser asks meanwhile waits.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    def close(self) -> None:
        self._jobs.close()
