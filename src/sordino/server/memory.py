"""What a server tells Python's garbage collector, and the system about freed memory."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys

from starlette.types import ASGIApp, Receive, Scope, Send

# Since the last request ended. Requests often come together.
_QUIET_SECONDS = 2.0


def leave_out_of_collections() -> None:
    """Keep what is in memory now out of later garbage collections, after one of everything.

    Libraries, tokenizer and model are a million objects. Python would look through all of them whenever a request had made many
    objects, and nothing else in the process runs for those 0.2 s and more. The same goes for a body with 400,000 items, which
    is many times looked through while it grows unless collections are rarer than Python's 700 new objects.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


class TrimsMemory:
    """An ASGI application around another. It returns freed memory to the system when no request is running.

    Freed objects leave holes between those that stay. The C library keeps the holes: a tenth more memory after full batches.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._open, self._is_due = app, 0, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        self._open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= 1
            self._trim_later()

    def _trim_later(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(_QUIET_SECONDS, self._trim)

    def _trim(self) -> None:
        self._is_due = False
        if self._open:
            self._trim_later()
        else:
            asyncio.get_running_loop().run_in_executor(None, trim)


def trim() -> None:
    """Give freed memory back to the system, where the C library is asked for that (glibc)."""
    free = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if free is not None:
        free(0)
