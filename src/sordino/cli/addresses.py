"""Where the server listens, and whom it lets in, checked before anything is loaded."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from sordino.errors import ConfigError

_NAME = re.compile(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*")


def checked_key(said: str | None) -> str | None:
    """The key without what stands around it, as the line's end of a file that it was kept in. Raises ConfigError.

    No client could send that, nor what cannot be printed.
    """
    key = None if said is None else said.strip()
    if key == "":
        raise ConfigError("an empty key is no key", where="--api-key", do="give one, or leave the flag out")
    if key is not None and not key.isprintable():
        raise ConfigError("no client can send this key", where="--api-key", expected="characters that can be printed")
    return key


def checked_hosts(said: Sequence[str]) -> tuple[str, ...]:
    """Names as a Host header has them. Raises ConfigError for what no header could ever be."""
    for name in said:
        if not _NAME.fullmatch(name.lower()):
            raise ConfigError(
                "not a host's name",
                where="--allowed-host",
                expected="a name without scheme and port, writer.lan, or .example.org for all below it",
                got=name,
            )
    return tuple(said)


def checked_origins(said: Sequence[str]) -> tuple[str, ...]:
    """Pages' addresses as browsers send them: without a path. Raises ConfigError for what no browser sends."""
    origins = tuple(one if one in ("*", "null") else one.removesuffix("/").lower() for one in said)
    for one in origins:
        if one not in ("*", "null") and not _is_origin(one):
            raise ConfigError(
                "not a page's address",
                where="--cors-origin",
                expected="scheme and host, such as https://lite.koboldai.net, and a port where there is one",
                got=one,
            )
    return origins


def _is_origin(one: str) -> bool:
    try:
        page = urlsplit(one)
        return bool(page.hostname) and one == f"{page.scheme}://{page.netloc}" and "@" not in page.netloc
    except ValueError:
        return False


def refuse_open_doors(host: str, api_key: str | None, *, insecure: bool) -> None:
    """Whoever can reach a public address can write with this machine. Raises ConfigError."""
    if insecure or api_key is not None or _is_loopback(host):
        return
    raise ConfigError(
        "others can reach this address, and no key is asked for",
        where="--host",
        got=host,
        do="give --api-key KEY, or --insecure if everybody may use it",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def socket_at(host: str, port: int) -> socket.socket:
    """Bound before anything is loaded: a port in use should not cost half a minute. Raises ConfigError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # create_server, as it knows on which systems an address may be taken again at once.
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen there ({error.strerror or error})",
            where=f"{host}:{port}",
            do="choose another --port or --host",
        ) from None


def address_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def near(address: str) -> str:
    """The address for this machine's own programs: "every address" is none that a browser could open."""
    return address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
