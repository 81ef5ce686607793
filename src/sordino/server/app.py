"""The application: routes, errors, and the guard around them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from sordino import __version__
from sordino.errors import SordinoError
from sordino.server import kobold, openai, prompts_api
from sordino.server.errors import Refused, body_of, not_kept, refused, status_of
from sordino.server.guard import Guard
from sordino.server.request_log import RequestLog
from sordino.server.serving import Idle, Serving, state_of
from sordino.server.start import Models


def create_app(
    serving: Serving | Idle,
    *,
    models: Models | None = None,
    page: Callable[[FastAPI], None] | None = None,
    api_key: str | None = None,
    allowed_hosts: Collection[str] = (),
    origins: Collection[str] = (),
) -> ASGIApp:
    """Everything the server answers.

    models: to change to another model. page: adds the web page's routes. origins: web pages of other addresses that may call it
    (CORS); none by default.
    """
    # No page of the API: FastAPI's loads its scripts from another server.
    app = FastAPI(title="Sordino", version=__version__, docs_url=None, redoc_url=None)
    app.state.serving, app.state.models = serving, models
    app.state.kobold = kobold.new_state(serving)
    app.include_router(openai.router)
    app.include_router(prompts_api.router)
    app.include_router(kobold.router, prefix="/api/v1")
    app.include_router(kobold.router, prefix="/api/latest", include_in_schema=False)
    app.include_router(kobold.extra)
    app.add_api_route("/health", health, methods=["GET"], tags=["operation"])
    app.add_api_route("/metrics", metrics, methods=["GET"], tags=["operation"])
    if page is not None:
        page(app)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(SordinoError, _ours)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _bug)
    outer: ASGIApp = app
    if origins:
        # The pages are listed, and lie on the internet: browsers ask whether they may reach into a private network.
        outer = CORSMiddleware(
            outer, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"], allow_private_network=True
        )
    limits = serving.limits
    guard = Guard(
        outer,
        api_key,
        frozenset(name.lower() for name in allowed_hosts),
        frozenset(origins),
        limits.body,
        limits.upload,
        limits.body_seconds,
    )
    return RequestLog(guard)


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
    return Response(state_of(request).metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


# Errors ----------------------------------------------------------------------------------------------------------------


def _answer(request: Request, status: int, message: str, *, field: str = "", code: str | None = None) -> JSONResponse:
    path = request.url.path
    # Messages repeat what was asked, and half a surrogate pair of it is in no encoding.
    message, field = (text.encode("utf-8", "backslashreplace").decode() for text in (message, field))
    return JSONResponse(body_of(path, status, message, field=field, code=code), status_of(path, status))


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return _answer(request, error.status, error.message, field=error.field, code=error.code)


async def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SordinoError)
    return await _refused(request, refused(error))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """The first fault, with the field that it is in."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    if first["type"] == "json_invalid":
        return _answer(request, 400, f"the body is not JSON: {first.get('ctx', {}).get('error', '')}")
    # Bodies of other kinds are not read as JSON: any web page may send those to any address without asking.
    if not place and "json" not in request.headers.get("content-type", "") and first["type"] != "missing":
        return _answer(request, 400, "the body must be JSON: send the header Content-Type: application/json")
    field = place[0] if place else ""
    where = ".".join(place)
    return _answer(request, 400, f"{where}: {first['msg']}" if where else first["msg"], field=field)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, OSError):
        # A form's file that is larger than a little lies on the disk while it comes.
        return await _ours(request, not_kept(error.__cause__))
    # FastAPI's word for bytes that are no UTF-8, nested too deep, or a number of thousands of digits.
    is_no_json = error.status_code == 400 and error.detail == "There was an error parsing the body"
    answer = _answer(request, error.status_code, "the body is not JSON" if is_no_json else str(error.detail))
    if not is_no_json:
        # No such route, or not with this method: said as it is on KoboldAI's routes too.
        answer.status_code = error.status_code
    answer.headers.update(error.headers or {})
    return answer


async def _bug(request: Request, error: Exception) -> JSONResponse:
    """In the API's own shape, and without what happened: that is in the log."""
    return _answer(request, 500, "an error of the server's own; its log says more")
