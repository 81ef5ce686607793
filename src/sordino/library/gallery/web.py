"""Requests for galleries and their files, of strangers' addresses.

What is checked of each request, and again of each redirect: https, or plain http on this machine; no name and password in the
address; and that the machine that is really connected is no nearer than the one before it. A gallery on the internet can lead to no
address of this network or this machine, whatever its names resolve to. Behind a proxy of the environment, the proxy resolves names,
and only addresses that are written as numbers are checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from sordino import __version__
from sordino.errors import GalleryError

_MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 30.0
# Compressed answers would need a second limit, and break the counting of bytes.
_HEADERS = {"User-Agent": f"sordino/{__version__}", "Accept-Encoding": "identity"}
# No proxy reaches this machine.
_DIRECT = ("all://127.0.0.1", "all://localhost", "all://[::1]")
# As many digits as a size has: Python refuses to read thousands.
_RANGE = re.compile(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15})")


class Reach(IntEnum):
    """Where an address leads: the farthest first."""

    INTERNET = 0
    NETWORK = 1
    MACHINE = 2


_PLACES = {Reach.INTERNET: "the internet", Reach.NETWORK: "a private network", Reach.MACHINE: "this machine"}


@dataclass(frozen=True)
class WebAnswer:
    """The beginning of an answer. url: after redirects. reach: of the machine that gave it. start, size: which bytes follow, and
    of how many; size is None where it is not said."""

    url: str
    reach: Reach
    status: int
    headers: Mapping[str, str]
    start: int
    size: int | None
    response: httpx2.Response

    def chunks(self) -> Iterator[bytes]:
        """Its bytes as they arrive. Raises GalleryError."""
        with _network_errors(self.url):
            yield from self.response.iter_raw()

    def body(self, limit: int) -> bytes:
        """All of it. Raises GalleryError where it is longer."""
        data = bytearray()
        for chunk in self.chunks():
            data += chunk
            if len(data) > limit:
                raise GalleryError("too large", where=self.url, expected=f"at most {limit} bytes")
        return bytes(data)


class Web:
    """A client. Closes its connections at the end of `with`. May be used from several threads."""

    def __init__(self) -> None:
        timeout = httpx2.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS)
        mounts = dict.fromkeys(_DIRECT)
        self._client = httpx2.Client(headers=_HEADERS, timeout=timeout, mounts=mounts, follow_redirects=False)

    def __enter__(self) -> Web:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    @contextmanager
    def get(self, url: str, most: Reach, *, begin: int = 0, count: int | None = None) -> Iterator[WebAnswer]:
        """The answer to a GET, after at most five redirects. most: the nearest place that it may come from.

        begin, count: ask for these bytes only; `WebAnswer.start` says where what comes begins. Raises GalleryError.
        """
        ranged = begin > 0 or count is not None
        headers = {"Range": f"bytes={begin}-{begin + count - 1 if count else ''}"} if ranged else {}
        for _ in range(_MOST_REDIRECTS + 1):
            with self._answer(url, headers, most, checked_url(url, most)) as (response, reach):
                if response.status_code not in _REDIRECTS:
                    yield _begun(response, url, reach)
                    return
                url, most = joined(url, response.headers.get("location", "")), reach
        raise GalleryError("too many redirects", where=url, expected=f"at most {_MOST_REDIRECTS}")

    @contextmanager
    def _answer(
        self, url: str, headers: Mapping[str, str], most: Reach, stated: Reach
    ) -> Iterator[tuple[httpx2.Response, Reach]]:
        """The answer and where it came from; stated: where the address says, which is all that is known behind a proxy."""
        proxied = _is_proxied(url)

        def check(event: str, info: Mapping[str, Any]) -> None:
            if event == "connection.connect_tcp.complete" and not proxied:
                stream = info["return_value"]
                try:
                    _checked_reach(_reach_of_peer(stream), most, url)
                except GalleryError:
                    stream.close()
                    raise

        with (
            _network_errors(url),
            self._client.stream("GET", url, headers=headers, extensions={"trace": check}) as response,
        ):
            if not proxied:
                # Again, as the connection may be one that was opened for another address.
                stated = _checked_reach(_reach_of_peer(response.extensions["network_stream"]), most, url)
            yield response, stated


def joined(base: str, address: str) -> str:
    """An address that may be relative, as an absolute one. Raises GalleryError."""
    try:
        return urljoin(base, address)
    except ValueError as error:
        raise GalleryError("not an address", where=base, got=address[:200]) from error


def checked_url(url: str, most: Reach) -> Reach:
    """The reach that an address itself states; a host name states none. Raises GalleryError for one that we never ask."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise GalleryError("not an address", where=url[:200], got=error) from error
    if parts.scheme not in ("http", "https") or not host:
        raise GalleryError("not an address", where=url[:200], expected="https://...")
    if parts.username is not None or parts.password is not None:
        raise GalleryError("an address with a name and password in it", where=host, do="leave them out")
    try:
        reach = Reach.MACHINE if host == "localhost" else reach_of(host)
    except ValueError:
        reach = Reach.INTERNET
    if parts.scheme == "http" and reach != Reach.MACHINE:
        raise GalleryError(
            "plain http can be read and changed on its way",
            where=url[:200],
            expected="https://, or http on this machine",
        )
    return _checked_reach(reach, most, url)


def reach_of(address: str) -> Reach:
    """Where an IP address leads. Raises ValueError for what is none."""
    ip: IPv4Address | IPv6Address | None = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    assert ip is not None
    if ip.is_loopback or ip.is_unspecified:
        return Reach.MACHINE
    return Reach.INTERNET if ip.is_global and not ip.is_multicast else Reach.NETWORK


def _checked_reach(reach: Reach, most: Reach, url: str) -> Reach:
    if reach > most:
        raise GalleryError(
            f"an address that leads to {_PLACES[reach]}",
            where=url[:200],
            expected=f"one of {_PLACES[most]}, as what led there",
            do="do not trust this gallery",
        )
    return reach


def _reach_of_peer(stream: Any) -> Reach:
    return reach_of(str(stream.get_extra_info("server_addr")[0]))


def _is_proxied(url: str) -> bool:
    parts, proxies = urlsplit(url), getproxies()
    host = parts.hostname or ""
    if host in ("localhost", "127.0.0.1", "::1"):
        return False
    return bool(proxies.get(parts.scheme) or proxies.get("all")) and not proxy_bypass(host)


def _begun(response: httpx2.Response, url: str, reach: Reach) -> WebAnswer:
    """Raises GalleryError where the server refuses, or answers in a way that cannot be used."""
    status, headers = response.status_code, response.headers
    if status == 416:
        return WebAnswer(url, reach, status, headers, 0, None, response)
    if status not in (200, 206):
        raise GalleryError("the server does not give it", where=url, got=f"HTTP {status}")
    if headers.get("content-encoding", "identity") != "identity":
        raise GalleryError("a compressed answer to a request for a plain one", where=url)
    start, size = 0, int(headers["content-length"]) if headers.get("content-length", "").isdecimal() else None
    if status == 206:
        found = _RANGE.fullmatch(headers.get("content-range", ""))
        if found is None:
            raise GalleryError("part of a file without a statement of which", where=url)
        start, size = int(found[1]), int(found[2])
    return WebAnswer(url, reach, status, headers, start, size, response)


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise GalleryError(
            "cannot be reached", where=url, got=str(error) or type(error).__name__, do="check the address, or try later"
        ) from error
