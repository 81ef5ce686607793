"""A client that goes away before its answer is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Request

from sordino.server.errors import Refused

T = TypeVar("T")


async def unless_left(request: Request, doing: Coroutine[Any, Any, T]) -> T:
    """The result, unless the client leaves first: then the work is cancelled. (A stream is cancelled by the server itself.)"""
    task = asyncio.ensure_future(doing)
    watch = asyncio.ensure_future(_until_left(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            # Nobody reads this.
            raise Refused(499, "the client has gone")
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await one


async def _until_left(request: Request) -> None:
    # The body has been read, so the next message is the leaving.
    while (await request.receive())["type"] != "http.disconnect":
        pass
