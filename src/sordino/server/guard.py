"""What guards every route, those of mounted applications included: host names, origins, the key, the size of a request.

Plain ASGI, so that no route can forget it.

- Host: a page on the internet can make its own name point to 127.0.0.1 and reach this server through its visitor's browser (DNS
  rebinding). IP addresses, localhost and allowed names are answered; other names are refused.
- Origin: a page of another address can send a form to any address without permission. Requests that change something are refused
  unless the page is this server's own, or listed.
- Key: where one is set every request needs it, except `/health` and the page's own files. It is compared in constant time; wrong
  keys are answered ever later. The page gets a cookie in exchange for the key: browsers send it with WebSockets and downloads too.
- Size and time: a body above the limit is refused before it is read, and one that arrives too slowly is given up.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sordino.server.addresses import Access
from sordino.server.errors import body_of
from sordino.server.serving import ServerLimits

COOKIE = "sordino"
_UPLOADS = ("/v1/soft_prompts", "/ui/texts", "/ui/cards", "/ui/stories")
# The seconds before the first wrong key of an address is answered; twice as many for each that follows.
_FIRST_SECONDS = 0.05
_MOST_WAITING, _MOST_ADDRESSES, _FORGOTTEN_SECONDS = 8, 4096, 900.0
# The page's files hold no user data; its login checks the key itself.
_OPEN_PATHS, _PAGE_FILES = frozenset({"/health", "/", "/ui/login"}), "/ui/static/"


def cookie_of(api_key: str) -> str:
    """The cookie's value: derived from the key, which it does not reveal. Valid as long as the key."""
    return hmac.digest(api_key.encode(), b"sordino page", "sha256").hex()


@dataclass(frozen=True)
class Guard:
    """An ASGI application around another."""

    app: ASGIApp
    access: Access
    limits: ServerLimits
    wrong_keys: WrongKeys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None and refusal[0] == 401 and _sends_key(headers):
            await self.wrong_keys.wait(scope)
        if refusal is not None:
            origin = headers.get("origin", "")
            # A listed page may read why it was refused, such as a wrong key.
            page = origin if origin in self.access.origins or (origin and "*" in self.access.origins) else ""
            await _answer(scope, receive, send, refusal, page=page)
            return
        if scope["type"] == "http":
            receive = _limited(receive, self._limit(scope), self.limits.body_seconds)
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._is_own_host(host):
            return 403, f"the host name {host[:100]!r} is not one of this server's: start it with --allowed-host NAME"
        origin = headers.get("origin", "")
        if origin and scope.get("method") not in ("GET", "HEAD", "OPTIONS") and not self._may_change(origin, host):
            return (
                403,
                f"pages of {origin[:100]!r} may not write here: start the server with --cors-origin {origin[:100]}",
            )
        # A browser's CORS preflight carries no key; its answer holds no data.
        is_preflight = scope.get("method") == "OPTIONS" and "access-control-request-method" in headers
        needs_key = self.access.api_key is not None and not _is_open(scope["path"]) and not is_preflight
        if needs_key and _sends_key(headers) and self.wrong_keys.many_wait(scope):
            return 429, "too many wrong keys from this address: try again in a moment"
        if needs_key and not self._is_key(headers):
            return 401, "this server needs its key: send the header Authorization: Bearer KEY"
        size = headers.get("content-length", "0")
        limit = self._limit(scope)
        if not size.isdecimal() or int(size) > limit:
            return 413, _too_large(limit)
        return None

    def _limit(self, scope: Scope) -> int:
        return self.limits.upload if scope["path"].startswith(_UPLOADS) else self.limits.body

    def _is_own_host(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
        name = name.lower()
        if name == "localhost" or name.endswith(".localhost") or self._is_allowed(name):
            return True
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True

    def _is_allowed(self, name: str) -> bool:
        """Listed itself, or below a listed `.example.org`."""
        return name in self.access.allowed_hosts or any(
            allowed.startswith(".") and name.endswith(allowed) for allowed in self.access.allowed_hosts
        )

    def _may_change(self, origin: str, host: str) -> bool:
        """Whether a page may change something. Behind a tunnel its address is an allowed host, and the Host header may differ."""
        if origin in self.access.origins or "*" in self.access.origins:
            return True
        try:
            page = urlsplit(origin)
            return page.hostname is not None and (page.netloc == host or self._is_allowed(page.hostname))
        except ValueError:
            return False

    def _is_key(self, headers: dict[str, str]) -> bool:
        api_key = self.access.api_key or ""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # The bytes as they were sent: clients encode a key beyond ASCII in UTF-8.
        if hmac.compare_digest(key.encode("latin-1"), api_key.encode()):
            return True
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        return hmac.compare_digest(cookie.encode("utf-8"), cookie_of(api_key).encode())


class WrongKeys:
    """How many wrong keys each address has sent lately. Each is answered later than the one before; while several answers of an
    address wait, no key of it is looked at: so many connections find no more than one. most_seconds: the longest delay.
    """

    def __init__(self, most_seconds: float) -> None:
        self._most_seconds = most_seconds
        self._sent: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._waiting: Counter[str] = Counter()

    def many_wait(self, scope: Scope) -> bool:
        return self._waiting[_address(scope)] >= _MOST_WAITING

    async def wait(self, scope: Scope) -> None:
        """After a wrong key, before it is answered."""
        address, now = _address(scope), time.monotonic()
        count, last = self._sent.pop(address, (0, now))
        count = 1 + (count if now - last < _FORGOTTEN_SECONDS else 0)
        self._sent[address] = count, now
        if len(self._sent) > _MOST_ADDRESSES:
            self._sent.popitem(last=False)
        self._waiting[address] += 1
        try:
            await asyncio.sleep(min(self._most_seconds, _FIRST_SECONDS * 2 ** min(count - 1, 16)))
        finally:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]


def _sends_key(headers: dict[str, str]) -> bool:
    cookies = headers.get("cookie", "")
    return "authorization" in headers or "x-api-key" in headers or COOKIE in cookie_parser(cookies)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(_PAGE_FILES)


def _too_large(limit: int) -> str:
    return f"the request is too large: at most {limit} bytes"


def _limited(receive: Receive, limit: int, seconds: float) -> Receive:
    read, complete, loop = 0, False, asyncio.get_running_loop()
    deadline = loop.time() + seconds

    async def counted() -> Message:
        nonlocal read, complete
        try:
            # After the body comes only the disconnect, at any time.
            async with asyncio.timeout_at(None if complete else deadline):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"the request did not arrive within {seconds:g} seconds") from None
        complete = not message.get("more_body", False)
        read += len(message.get("body", b""))
        if read > limit:
            # The exception that frameworks pass on while they read a body.
            raise HTTPException(413, _too_large(limit))
        return message

    return counted


async def _answer(scope: Scope, receive: Receive, send: Send, refusal: tuple[int, str], *, page: str) -> None:
    status, message = refusal
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    if page:
        headers |= {"access-control-allow-origin": page, "vary": "Origin"}
    await JSONResponse(body_of(scope["path"], status, message), status, headers)(scope, receive, send)
