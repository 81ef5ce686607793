"""Our application beside another server's, on one address: who answers a request.

Requests that name a soft prompt (`base:name`, or the field `soft_prompt`), the library's routes and KoboldAI's are ours; all others
stay the other server's.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sordino.server.errors import body_of

# Paths that begin so are ours alone.
_OURS = ("/api/", "/sdapi/", "/v1/soft_prompt")
_SHARED = ("/v1/completions", "/v1/chat/completions")
_MODELS = "/v1/models"
# Tensors over HTTP, which vLLM reads with torch.load.
_TENSORS = "prompt_embeds"


@dataclass
class Ours:
    """What is set once both servers are ready; until then all requests are the other's. app: our application. names: of the base
    model. models: both servers' models, for a request's scope."""

    app: ASGIApp | None = None
    names: tuple[str, ...] = ()
    models: Callable[[Scope], Awaitable[dict[str, Any]]] | None = None


class Door:
    """An ASGI application around the other server's."""

    def __init__(self, app: ASGIApp, ours: Ours) -> None:
        self._other, self._ours = app, ours

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ours = self._ours
        if scope["type"] != "http" or ours.app is None:
            await self._other(scope, receive, send)
            return
        path, method = str(scope["path"]), str(scope["method"])
        if path.startswith(_OURS):
            await ours.app(_plain(scope), receive, send)
        elif (method, path) == ("GET", _MODELS) and ours.models is not None:
            await JSONResponse(await ours.models(scope))(scope, receive, send)
        elif method == "POST" and _is_json(scope):
            await self._posted(ours.app, scope, receive, send)
        else:
            await self._other(scope, receive, send)

    async def _posted(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        read = await _whole(receive)
        body = _parsed(read)
        if _holds_tensors(body):
            message = "tensors are not taken over HTTP: install the soft prompt in the library and name it"
            refusal = JSONResponse(body_of(str(scope["path"]), 400, message, field=_TENSORS), 400)
            await refusal(scope, receive, send)
            return
        again = _replayed(read, receive)
        if scope["path"] in _SHARED and isinstance(body, dict) and self._names_a_prompt(body):
            await app(_plain(scope), again, send)
        else:
            await self._other(scope, again, send)

    def _names_a_prompt(self, body: dict[str, Any]) -> bool:
        model = body.get("model")
        by_model = isinstance(model, str) and model.startswith(tuple(f"{name}:" for name in self._ours.names))
        return by_model or bool(body.get("soft_prompt"))


def _plain(scope: Scope) -> Scope:
    """Without what the other server's application has noted in it."""
    return {name: value for name, value in scope.items() if name not in ("app", "router", "endpoint", "route", "state")}


def _is_json(scope: Scope) -> bool:
    return any(name == b"content-type" and b"json" in value for name, value in scope["headers"])


async def _whole(receive: Receive) -> list[Message]:
    """All messages of a request's body."""
    read = [await receive()]
    while read[-1]["type"] == "http.request" and read[-1].get("more_body"):
        read.append(await receive())
    return read


def _replayed(read: list[Message], receive: Receive) -> Receive:
    waiting = list(reversed(read))

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _parsed(read: Sequence[Message]) -> Any:
    """The body, or None for what is no JSON, which the other server refuses."""
    try:
        return json.loads(b"".join(message.get("body", b"") for message in read))
    except (ValueError, RecursionError):
        return None


def _holds_tensors(body: Any) -> bool:
    """Whether a key or a kind of content names tensors, at any depth."""
    waiting = [body]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if one.get(_TENSORS) is not None or one.get("type") == _TENSORS:
                return True
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return False
