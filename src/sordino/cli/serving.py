"""`sordino serve`: the HTTP server in this process."""

from __future__ import annotations

import ipaddress
import logging
import socket
from typing import TYPE_CHECKING

import click

from sordino.cli.console import err, one_line, out, warn
from sordino.cli.fitting import loaded_model
from sordino.cli.options import device_option, dtype_option, library_option, model_option
from sordino.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from types import FrameType

    import uvicorn

    from sordino.backends.embedded import EmbeddedEngine
    from sordino.library import Library

_MIB = 1 << 20


@click.command()
@model_option()
@library_option()
@click.option("--soft-prompt", metavar="NAME", help="The default soft prompt of KoboldAI's routes.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=5000, show_default=True, metavar="N")
@click.option("--api-key", envvar="SORDINO_API_KEY", show_envvar=True, metavar="KEY", help="Ask every request for it.")
@click.option("--insecure", is_flag=True, help="Listen on a public address without a key.")
@click.option("--allowed-host", multiple=True, metavar="NAME", help="A name this server is called by; may be repeated.")
@click.option("--cors-origin", multiple=True, metavar="URL", help="A web page that may call it; may be repeated.")
@click.option(
    "--rows", type=click.IntRange(1, 256), default=16, show_default=True, metavar="N", help="Most that run at once."
)
@click.option(
    "--queue", type=click.IntRange(0, 100_000), default=256, show_default=True, metavar="N", help="Most that wait."
)
@click.option(
    "--kv-memory",
    type=click.IntRange(1),
    metavar="MIB",
    help="For rows that run.  [default: a quarter of what is free]",
)
@click.option(
    "--prefix-memory",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    metavar="MIB",
    help="For prefixes and texts that may come again.",
)
@click.option("--log", "logged", is_flag=True, help="A line of JSON on standard error for each request, without texts.")
@device_option()
@dtype_option()
def serve(
    model: str,
    library: Library,
    soft_prompt: str | None,
    host: str,
    port: int,
    api_key: str | None,
    insecure: bool,
    allowed_host: tuple[str, ...],
    cors_origin: tuple[str, ...],
    rows: int,
    queue: int,
    kv_memory: int | None,
    prefix_memory: int,
    logged: bool,
    device: str | None,
    dtype: str | None,
) -> None:
    """Serve a model and every soft prompt that fits it over HTTP.

    OpenAI's routes under /v1: the model's name chooses the soft prompt, as in smollm2:voice. Ctrl-C lets running requests finish,
    a second one stops at once.
    """
    check_address(host, api_key, insecure=insecure)
    if library.missing_folders():
        warn(f"the library folder {library.missing_folders()[0]} does not exist")
    try:
        import uvicorn

        from sordino.server.app import create_app
        from sordino.server.start import EngineOptions, opened
    except ImportError as error:
        raise MissingExtra(
            "the server's packages are not installed", got=error.name or error, do="pip install 'sordino[serve]'"
        ) from None
    if logged:
        requests = logging.getLogger("sordino.requests")
        requests.addHandler(logging.StreamHandler())
        requests.setLevel(logging.INFO)
    listening = _socket(host, port)
    base = loaded_model(model, dtype, device)
    options = EngineOptions(rows, queue, kv_memory * _MIB if kv_memory else None, prefix_memory * _MIB)
    with listening, opened(base, library, options) as serving:
        if soft_prompt is not None:
            serving.voices.set_default(soft_prompt)
        app = create_app(serving, api_key=api_key, allowed_hosts=allowed_host, origins=cors_origin)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=None
        )
        server = uvicorn.Server(config)
        _say_ready(serving.model, listening, serving.voices.default, len(serving.voices.usable()))
        _end_in_two(server, serving.backend)
        server.run(sockets=[listening])
    err.print("Stopped.")


def _end_in_two(server: uvicorn.Server, backend: EmbeddedEngine) -> None:
    """First signal: nothing new is taken, running requests finish. Second: they end now, each with a last event."""

    def handled(number: int, frame: FrameType | None) -> None:
        if server.should_exit:
            backend.hurry()
        server.should_exit = True

    server.handle_exit = handled  # type: ignore[method-assign, assignment]


def check_address(host: str, api_key: str | None, *, insecure: bool) -> None:
    """Whoever can reach a public address can write with this machine. Raises ConfigError."""
    if api_key is not None and not api_key.strip():
        raise ConfigError("an empty key is no key", where="--api-key", do="give one, or leave the flag out")
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


def _socket(host: str, port: int) -> socket.socket:
    """Bound before the model is loaded: a port in use should not cost half a minute. Raises ConfigError."""
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


def _say_ready(model: str, listening: socket.socket, default: str | None, voices: int) -> None:
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    out.print(
        f"Ready: {one_line(model)} at {address}, with {voices} soft prompts of the library"
        + (f"; default {one_line(default)}" if default else "")
    )
    out.print(f"Next:  point an OpenAI client to {address}/v1, or look at {address}/docs; Ctrl-C stops")
