"""Where the server listens, and whom it lets in, checked before anything is loaded."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from sordino.errors import ConfigError
from sordino.settings import check_settings, setting

# Not 5000, which AirPlay has on macOS; nor 5001, 7860, 8000, 8080 or 8188, which other programs around language models take.
_PORT = 5100
# So many ports are tried, from the one that is wanted on.
_TRIED_PORTS = 20
_NAME = re.compile(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*")


@dataclass(frozen=True)
class Access:
    """Where the server listens, and whom it answers. origins: web pages of other addresses that may call it.

    Raises ConfigError for what cannot be.
    """

    host: str = setting("127.0.0.1", "Where to listen.", unit="ADDRESS")
    port: int = setting(_PORT, "The port; 0 for any that is free.", low=0, high=65535, unit="N")
    api_key: str | None = setting(None, "Require this key with every request.", unit="KEY", envvar="SORDINO_API_KEY")
    insecure: bool = setting(False, "Listen on a public address without a key.")
    allowed_hosts: tuple[str, ...] = setting(
        (), "A host name that this server answers to; may be repeated.", unit="NAME", flag="--allowed-host"
    )
    origins: tuple[str, ...] = setting(
        (), "The origin of a web page that may call the server; may be repeated.", unit="URL", flag="--cors-origin"
    )

    def __post_init__(self) -> None:
        check_settings(self)
        object.__setattr__(self, "api_key", checked_key(self.api_key))
        self._refuse_open_doors()
        hosts = tuple(name.lower() for name in checked_hosts(self.allowed_hosts))
        object.__setattr__(self, "allowed_hosts", hosts)
        object.__setattr__(self, "origins", checked_origins(self.origins))

    def _refuse_open_doors(self) -> None:
        """Anyone who can reach a public address can use this machine."""
        if self.insecure or self.api_key is not None or _is_loopback(self.host):
            return
        raise ConfigError(
            "other machines can reach this address, and no key is required",
            where="--host",
            got=self.host,
            do="give --api-key KEY, or --insecure if everybody may use it",
        )

    def listen(self) -> socket.socket:
        """Before anything is loaded: a port in use should not cost half a minute. Raises ConfigError."""
        try:
            return self._listen()
        except OSError as error:
            # `create_server` appends the address, which is said anyway.
            why = re.sub(r" \(while attempting .*", "", error.strerror or str(error))
            raise ConfigError(
                f"cannot listen there ({why})",
                where=f"{self.host}:{self.port}",
                do="end the program that listens there, or choose another --port (0: any that is free)"
                if error.errno == errno.EADDRINUSE
                else "choose another --port or --host",
            ) from None

    def at_free_port(self) -> Access:
        """The same at the first of the next ports that no program listens at; unchanged where none is free.

        Another program may take that port meanwhile: `listen` then says so.
        """
        for port in range(self.port, min(self.port + _TRIED_PORTS, 65536)):
            moved = replace(self, port=port)
            try:
                moved._listen().close()
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                # Another port would not help, and `listen` says what is wrong.
                return self
            return moved
        return self

    def _listen(self) -> socket.socket:
        family, _, _, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
        # create_server, as it knows on which systems an address may be taken again at once.
        return socket.create_server(address[:2], family=family)


def checked_key(given: str | None) -> str | None:
    """The key without white space around it, such as the line end of the file it was kept in. Raises ConfigError.

    No client could send that, nor what cannot be printed.
    """
    key = None if given is None else given.strip()
    if key == "":
        raise ConfigError("an empty key is no key", where="--api-key", do="give one, or leave the flag out")
    if key is not None and not key.isprintable():
        raise ConfigError("no client can send this key", where="--api-key", expected="characters that can be printed")
    return key


def checked_hosts(names: Sequence[str]) -> tuple[str, ...]:
    """Names as a Host header has them. Raises ConfigError for what no header could ever be."""
    for name in names:
        if not _NAME.fullmatch(name.lower()):
            raise ConfigError(
                "not a host's name",
                where="--allowed-host",
                expected="a name without scheme and port, writer.lan, or .example.org for all below it",
                got=name,
            )
    return tuple(names)


def checked_origins(pages: Sequence[str]) -> tuple[str, ...]:
    """Pages' addresses as browsers send them: without a path. Raises ConfigError for what no browser sends."""
    origins = tuple(one if one in ("*", "null") else one.removesuffix("/").lower() for one in pages)
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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def near(address: str) -> str:
    """The address for programs on this machine: a browser cannot open "every address"."""
    return address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
