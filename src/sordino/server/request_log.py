"""A line of JSON for each request, on the logger `sordino.requests`: what was asked, how it ended. Never a text, name or key."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("sordino.requests")


@dataclass(frozen=True)
class RequestLog:
    """An ASGI application around another."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, sent = time.monotonic(), 0, 0

        async def counted(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            # The route and not the path: names of soft prompts are the user's.
            route = getattr(scope.get("route"), "path", None)
            line = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "method": scope["method"],
                "route": route or "none",
                "status": status,
                "seconds": round(time.monotonic() - began, 3),
                "bytes": sent,
            }
            log.info(json.dumps(line))
