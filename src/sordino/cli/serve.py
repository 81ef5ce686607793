"""`sordino serve`: the HTTP server in this process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from sordino.cli.addresses import (
    address_of,
    checked_hosts,
    checked_key,
    checked_origins,
    near,
    refuse_open_doors,
    socket_at,
)
from sordino.cli.console import err, one_line, out, warn
from sordino.cli.loading import loaded_model
from sordino.cli.options import device_option, dtype_option, library_option, model_option
from sordino.errors import ConfigError, MissingExtra, SordinoError

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    import uvicorn

    from sordino.engine.runners.build import EngineOptions
    from sordino.engine.runners.runner import Runner
    from sordino.library.library import Library
    from sordino.models.description import DescribedModel
    from sordino.server.page.app import Page
    from sordino.server.serving import Idle, Serving
    from sordino.server.start import Models

_MIB = 1 << 20
_LAST_EVENTS_SECONDS = 1.0


@click.command()
@model_option(default=None)
@library_option()
@click.option(
    "--other-model",
    multiple=True,
    metavar="NAME",
    help="A model that PUT /api/v1/model may change to; may be repeated.",
)
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
@click.option(
    "--runner",
    type=click.Choice(["auto", "torch", "gguf"]),
    default="auto",
    show_default=True,
    help="What runs the model; auto: llama.cpp for a .gguf file where it is installed, else PyTorch.",
)
@click.option("--no-ui", is_flag=True, help="Without the page at /; --model is then smollm2 where none is given.")
@click.option("--open", "opens", is_flag=True, help="Show the page in this machine's browser.")
@device_option()
@dtype_option()
def serve(
    model: str | None,
    library: Library,
    other_model: tuple[str, ...],
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
    runner: str,
    no_ui: bool,
    opens: bool,
    device: str | None,
    dtype: str | None,
) -> None:
    """Serve a model and every soft prompt that fits it over HTTP, and the page to use them.

    Without --model the one that was served last; the page can choose another. OpenAI's routes are under /v1: the
    model's name chooses the soft prompt, as in smollm2:voice. Ctrl-C lets running requests finish, a second one stops
    at once.
    """
    api_key = checked_key(api_key)
    refuse_open_doors(host, api_key, insecure=insecure)
    allowed_hosts, origins = checked_hosts(allowed_host), checked_origins(cors_origin)
    if library.missing_folders():
        missing = library.missing_folders()[0]
        warn(f"the library folder {missing} {'is a file' if missing.is_file() else 'does not exist'}")
    if model is not None:
        from sordino.models import files

        files.resolve(model)
    # Before PyTorch too, which takes seconds to come.
    listening = socket_at(host, port)
    try:
        import uvicorn

        from sordino.engine.runners.build import EngineOptions, embedded
        from sordino.server.app import create_app
        from sordino.server.metrics import ServerMetrics
        from sordino.server.prompts import ServedPrompts
        from sordino.server.serving import Idle, ServerLimits
        from sordino.server.start import Models, opened
    except ImportError as error:
        listening.close()
        raise MissingExtra(
            "the server's packages are not installed", got=error.name or error, do="pip install 'sordino[serve]'"
        ) from None
    if logged:
        requests = logging.getLogger("sordino.requests")
        requests.addHandler(logging.StreamHandler())
        requests.setLevel(logging.INFO)
    options = EngineOptions(rows, queue, kv_memory * _MIB if kv_memory else None, prefix_memory * _MIB)
    metrics = ServerMetrics()

    @contextmanager
    def serving_of(name: str) -> Iterator[Serving]:
        with (
            _running(name, runner, device, dtype, options, ask=next(at_the_start, False)) as (base, rows_of),
            opened(base, embedded(base, rows_of, options), library, metrics=metrics) as serving,
        ):
            yield serving

    models = Models(serving_of, other_model)
    idle = Idle(ServedPrompts(None, library), metrics, ServerLimits())
    # Both flags are PyTorch's.
    page = None if no_ui else _page(models, idle, "torch" if device or dtype else runner, api_key)
    remembered = page.remembered() if page is not None and model is None else None
    model = model or ("smollm2" if page is None else remembered)
    # Nobody is asked at the terminal for what a client wants.
    at_the_start = iter([model is not None])
    if model is None and soft_prompt is not None:
        raise ConfigError("a default is a model's, and none is given", where="--soft-prompt", do="add --model")
    with listening, closing(models), closing(page) if page else nullcontext():
        serving = _first(models, model, may_fail=remembered is not None) or idle
        if isinstance(serving, Idle):
            model = None
        if soft_prompt is not None:
            serving.prompts.set_default(soft_prompt)
        app = create_app(
            serving,
            models=models,
            page=page.add if page else None,
            api_key=api_key,
            allowed_hosts=allowed_hosts,
            origins=origins,
        )
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=None,
            ws_max_size=ServerLimits().body,
        )
        server = uvicorn.Server(config)
        address = address_of(listening)
        _say_ready(serving, address, with_page=page is not None)
        _end_in_two(server, models)
        if page is not None:
            page.start(near(address) if opens else None, served=model)
        server.run(sockets=[listening])
    err.print("Stopped.")


def _first(models: Models, name: str | None, *, may_fail: bool) -> Serving | None:
    """What is served at the start. A model that was only remembered may be gone: another can be chosen on the page."""
    if name is None:
        return None
    try:
        return models.first(name)
    except SordinoError as error:
        if not may_fail:
            raise
        warn(f"the model that was served last cannot be loaded: {error.message}")
        return None


@contextmanager
def _running(
    name: str, runner: str, device: str | None, dtype: str | None, options: EngineOptions, *, ask: bool
) -> Iterator[tuple[DescribedModel, Runner]]:
    """The model and what runs it."""
    if (path := _gguf_path(name, runner, device, dtype)) is None:
        from sordino.engine.runners.build import torch_runner
        from sordino.engine.threads import in_thread_of_its_own

        def made() -> tuple[DescribedModel, Runner]:
            base = loaded_model(name, dtype, device, ask=ask)
            return base, torch_runner(base, options)

        yield in_thread_of_its_own(made)
        return
    with ExitStack() as stack:
        with err.status(f"Loading {one_line(name)} ..."):
            from sordino.engine.runners.build import gguf_runner
            from sordino.models import files
            from sordino.models.description import describe

            model = describe(files.resolve(name), path, tell=lambda line: err.print(one_line(line)))
            rows = stack.enter_context(gguf_runner(model, path, options))
        yield model, rows


def _gguf_path(name: str, runner: str, device: str | None, dtype: str | None) -> Path | None:
    """The file for llama.cpp; None where PyTorch is to run the model. Raises ConfigError, MissingExtra."""
    if runner == "torch":
        return None
    installed = find_spec("llama_cpp") is not None
    # Both flags are PyTorch's: whoever gives them means PyTorch.
    if runner == "auto" and (not installed or device is not None or dtype is not None):
        return None
    from sordino.models import files

    path = files.gguf_file(files.resolve(name), tell=lambda line: err.print(one_line(line)))
    if runner == "gguf":
        if path is None:
            raise ConfigError("llama.cpp reads .gguf files only", where="--runner gguf", got=name)
        if device is not None or dtype is not None:
            raise ConfigError("--device and --dtype are for PyTorch", where="--runner gguf", do="leave them out")
        if not installed:
            raise MissingExtra("llama.cpp is not installed", where="--runner gguf", do="pip install 'sordino[gguf]'")
    return path


def _end_in_two(server: uvicorn.Server, models: Models) -> None:
    """First signal: nothing new is taken, running requests finish. Second: they end now, each with a last event."""

    def handled(number: int, frame: FrameType | None) -> None:
        if server.should_exit:
            models.stop_now()
            # Whoever is cut off now is cut off on purpose: no tracebacks of that.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            # The last events need a moment to go out. Who does not read them is not waited for.
            threading.Timer(_LAST_EVENTS_SECONDS, setattr, (server, "force_exit", True)).start()
        else:
            err.print("Stopping when what programs asked for is written; Ctrl-C again ends it at once.")
        server.should_exit = True

    server.handle_exit = handled  # type: ignore[method-assign, assignment]


def _say_ready(serving: Serving | Idle, address: str, *, with_page: bool) -> None:
    from sordino.server.serving import Idle

    if not isinstance(serving, Idle):
        default, voices = serving.prompts.default, len(serving.prompts.usable())
        out.print(
            f"Ready: {one_line(serving.model)} at {address}, run by {serving.runner}, with {voices} soft prompts of the library"
            + (f"; default {one_line(default)}" if default else "")
        )
    else:
        out.print(f"Ready: at {address}, without a model")
    here = near(address)
    if isinstance(serving, Idle):
        out.print(f"Next:  open {here} in a browser and choose a model, or start with --model smollm2; Ctrl-C stops")
    elif with_page:
        out.print(f"Next:  open {here} in a browser, or point an OpenAI client to {here}/v1; Ctrl-C stops")
    else:
        out.print(f"Next:  point an OpenAI client to {here}/v1, or a KoboldAI client to {here}; Ctrl-C stops")


def _page(models: Models, idle: Idle, runner: str, api_key: str | None) -> Page | None:
    """The page, where its packages are installed."""
    if find_spec("websockets") is None:
        warn("no page at /: pip install 'sordino[ui]' adds it")
        return None
    from sordino.server.page.app import Page

    return Page(models, idle, runner, api_key)


@click.command()
@model_option(default=None)
@library_option()
@click.option("--port", type=click.IntRange(0, 65535), default=5000, show_default=True, metavar="N")
@click.option("--api-key", envvar="SORDINO_API_KEY", show_envvar=True, metavar="KEY", help="Ask every request for it.")
@click.pass_context
def ui(context: click.Context, model: str | None, library: Library, port: int, api_key: str | None) -> None:
    """Open the page: load a soft prompt, watch the lamp turn green, write, train.

    The same as `sordino serve --open`, which has more options.
    """
    if find_spec("websockets") is None:
        raise MissingExtra("the page's packages are not installed", got="websockets", do="pip install 'sordino[ui]'")
    context.invoke(serve, model=model, library=library, port=port, api_key=api_key, opens=True)
