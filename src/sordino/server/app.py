"""The application: routes, errors, and around them the guard and the request log."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sordino import __version__
from sordino.errors import SordinoError
from sordino.server import kobold, koboldcpp, openai, prompts_api, tokens
from sordino.server.addresses import Access
from sordino.server.errors import Refused, body_of, refused, status_of, upload_not_stored
from sordino.server.guard import Guard, WrongKeys
from sordino.server.memory import TrimsMemory
from sordino.server.serving import Idle, Serving, state_of
from sordino.server.start import Models

log = logging.getLogger("sordino.requests")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def create_app(
    serving: Serving | Idle,
    access: Access,
    *,
    models: Models | None = None,
    page: Callable[[FastAPI], None] | None = None,
) -> ASGIApp:
    """The server's ASGI application. models: changes the model. page: adds the web page's routes."""
    app = api(serving, models)
    if page is not None:
        page(app)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(SordinoError, _sordino_error)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _bug)
    outer: ASGIApp = app
    origins = list(access.origins)
    if origins:
        # The pages listed are on the internet: browsers ask first whether they may call into a private network.
        outer = CORSMiddleware(
            outer, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], allow_private_network=True
        )
    # The page's login looks at keys, too.
    app.state.api_key, app.state.wrong_keys = access.api_key, WrongKeys(serving.limits.wrong_key_seconds)
    return RequestLog(TrimsMemory(Guard(outer, access, serving.limits, app.state.wrong_keys)))


def api(serving: Serving | Idle, models: Models | None = None) -> FastAPI:
    """The routes for programs, with nothing around them."""
    # Without FastAPI's page of the API, which loads its scripts from another server.
    app = FastAPI(title="Sordino", version=__version__, docs_url=None, redoc_url=None)
    app.state.serving, app.state.models = serving, models
    app.state.kobold = kobold.new_state(serving)
    app.include_router(openai.router)
    app.include_router(prompts_api.router)
    app.include_router(kobold.router, prefix="/api/v1")
    app.include_router(kobold.router, prefix="/api/latest", include_in_schema=False)
    app.include_router(kobold.extra)
    app.include_router(koboldcpp.router)
    app.include_router(tokens.router)
    app.add_api_route("/health", health, methods=["GET"], tags=["operation"])
    app.add_api_route("/metrics", metrics, methods=["GET"], tags=["operation"])
    return app


async def health(request: Request, response: Response) -> dict[str, Any]:
    """Whether requests are served. 503 once the engine has died."""
    serving = state_of(request)
    if isinstance(serving, Idle):
        return {"status": "ok", "model": None, "running": 0, "waiting": 0}
    running, waiting = serving.backend.counts()
    if serving.backend.dead is not None:
        response.status_code = 503
    return {
        "status": "ok" if serving.backend.dead is None else "the engine has stopped after an error",
        "model": serving.model,
        "running": running,
        "waiting": waiting,
    }


async def metrics(request: Request) -> Response:
    """Prometheus."""
    return Response(state_of(request).metrics.scrape(), media_type="text/plain; version=0.0.4; charset=utf-8")


# The request log -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RequestLog:
    """An ASGI application around another: one line of JSON for each request, on `sordino.requests`. Never a text, name or key."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, sent = time.monotonic(), 0, 0

        identifier = _request_id(scope)

        async def counted(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", identifier)]}
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            line = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "method": scope["method"],
                # The route and not the path: names of soft prompts are the user's.
                "route": getattr(scope.get("route"), "path", None) or "none",
                "status": status,
                "seconds": round(time.monotonic() - began, 3),
                "bytes": sent,
            }
            log.info(json.dumps(line))


def _request_id(scope: Scope) -> bytes:
    """The client's own name for its request, or a random one."""
    given: bytes = dict(scope["headers"]).get(b"x-request-id", b"")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16).encode()


# Errors ----------------------------------------------------------------------------------------------------------------


def _answer(request: Request, status: int, message: str, *, field: str = "", code: str | None = None) -> JSONResponse:
    path = request.url.path
    return JSONResponse(body_of(path, status, message, field=field, code=code), status_of(path, status))


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return _answer(request, error.status, error.message, field=error.field, code=error.code)


async def _sordino_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SordinoError)
    return await _refused(request, refused(error))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """The first error, with its field."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    if first["type"] == "json_invalid":
        return _answer(request, 400, f"the body is not JSON: {first.get('ctx', {}).get('error', '')}")
    # Any web page may send other content types to any address, so they are not read as JSON.
    if not place and "json" not in request.headers.get("content-type", "") and first["type"] != "missing":
        return _answer(request, 400, "the body must be JSON: send the header Content-Type: application/json")
    field = place[0] if place else ""
    where = ".".join(place)
    return _answer(request, 400, f"{where}: {first['msg']}" if where else first["msg"], field=field)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, OSError):
        # A larger file of a form is stored on the disk while it arrives.
        return await _sordino_error(request, upload_not_stored(error.__cause__))
    # FastAPI's message for bytes that are not UTF-8, deep nesting, or a number of thousands of digits.
    is_no_json = error.status_code == 400 and error.detail == "There was an error parsing the body"
    message = "the body is not JSON" if is_no_json else str(error.detail)
    place = f"{request.method} {request.url.path[:100]!r}"
    if error.status_code == 404:
        message = f"there is nothing at {place}: GET /openapi.json lists the routes"
    elif error.status_code == 405:
        message = f"no route is {place}: use {(error.headers or {}).get('Allow', 'GET')}"
    answer = _answer(request, error.status_code, message)
    if not is_no_json:
        # No such route, or not with this method: the status is the same on KoboldAI's routes.
        answer.status_code = error.status_code
    answer.headers.update(error.headers or {})
    return answer


async def _bug(request: Request, error: Exception) -> JSONResponse:
    """In the shape of the API and without details, which are in the log."""
    return _answer(request, 500, "an internal error of the server: see its log")
