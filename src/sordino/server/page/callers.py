"""Who calls the API: what the page shows under "Other programs". Kept in memory, and never a text."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.types import ASGIApp, Receive, Scope, Send

router = APIRouter(prefix="/ui/callers", include_in_schema=False)

_APIS = (("/v1/", "OpenAI"), ("/api/extra/", "KoboldCpp"), ("/api/", "KoboldAI"))
_SHOWN_SECONDS = 600.0
_KEPT = 100


@dataclass
class Caller:
    requests: int = 0
    last: float = 0.0


class Callers:
    """By address, program and API, the latest last."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str, str], Caller] = OrderedDict()

    def saw(self, scope: Scope) -> None:
        api = next((name for start, name in _APIS if scope["path"].startswith(start)), None)
        headers = dict(scope["headers"])
        # The page asks for some of these routes itself; browsers say so.
        if api is None or headers.get(b"sec-fetch-site") == b"same-origin":
            return
        agent = headers.get(b"user-agent", b"").decode("latin-1")[:80]
        key = (scope["client"][0] if scope.get("client") else "", agent, api)
        caller = self._known.setdefault(key, Caller())
        caller.requests, caller.last = caller.requests + 1, time.monotonic()
        self._known.move_to_end(key)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)

    def told(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        return [
            {"host": host, "agent": agent, "api": api, "requests": one.requests, "ago": now - one.last}
            for (host, agent, api), one in reversed(self._known.items())
            if now - one.last < _SHOWN_SECONDS
        ]


class Seen:
    """Middleware that tells `Callers` of every request."""

    def __init__(self, app: ASGIApp, callers: Callers) -> None:
        self.app, self.callers = app, callers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.callers.saw(scope)
        await self.app(scope, receive, send)


@router.get("")
async def callers(request: Request) -> dict[str, Any]:
    state = request.app.state
    return {"tabs": state.watch.tabs, "callers": state.callers.told()}
