"""serve and ui: the HTTP server in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from sordino.cli.console import err, one_line, out, warn
from sordino.cli.loading import ModelChoice, base_model_options, named_model_option
from sordino.cli.options import library_option, setting_options
from sordino.engine.config import EngineOptions
from sordino.errors import ConfigError, MissingExtra, SordinoError
from sordino.server.addresses import Access, address_of, near
from sordino.settings import setting

if TYPE_CHECKING:
    import socket

    from sordino.library.library import Library
    from sordino.server.metrics import ServerMetrics
    from sordino.server.page.app import Page
    from sordino.server.serving import Idle, Serving
    from sordino.server.start import Models


@dataclass(frozen=True)
class PageOptions:
    """The page at /."""

    no_ui: bool = setting(False, "Do not serve the page at /; without --model, smollm2 is served.")
    opens: bool = setting(False, "Show the page in this machine's browser.", flag="--open")


@dataclass(frozen=True)
class ServedOptions:
    """What is served besides the model."""

    others: tuple[str, ...] = setting(
        (), "A model that PUT /api/v1/model may change to; may be repeated.", unit="NAME", flag="--other-model"
    )
    soft_prompt: str | None = setting(None, "The default soft prompt of KoboldAI's routes.", unit="NAME")


@click.command()
@base_model_options(default="")
@library_option()
@setting_options(ServedOptions, given_as="served")
@setting_options(Access, given_as="access")
@setting_options(EngineOptions, given_as="engine")
@click.option(
    "--log", "logged", is_flag=True, help="Log each request as a line of JSON on standard error, without its texts."
)
@setting_options(PageOptions, given_as="page")
def serve(
    model: ModelChoice,
    library: Library,
    served: ServedOptions,
    access: Access,
    engine: EngineOptions,
    logged: bool,
    page: PageOptions,
) -> None:
    """Serve a model and every soft prompt that fits it over HTTP, and the page to use them.

    Without --model, the model that was served last is loaded; the page can change it. OpenAI's routes are under /v1: the
    model's name chooses the soft prompt, as in smollm2:voice. Ctrl-C lets running requests finish, a second one stops
    at once.
    """
    if library.missing_folders():
        missing = library.missing_folders()[0]
        warn(f"the library folder {missing} {'is a file' if missing.is_file() else 'does not exist'}")
    if model.model:
        from sordino.models import files

        files.resolve(model.model)
    # Before PyTorch too, which takes seconds to come.
    with access.listen() as listening:
        try:
            from sordino.server.run import log_requests
        except ImportError as error:
            raise MissingExtra(
                "the server's packages are not installed", got=error.name or error, do="pip install 'sordino[serve]'"
            ) from None
        if logged:
            log_requests()
        _serve(listening, model, library, served, access, engine, page)
    err.print("Stopped.")


def _serve(
    listening: socket.socket,
    model: ModelChoice,
    library: Library,
    served: ServedOptions,
    access: Access,
    engine: EngineOptions,
    options: PageOptions,
) -> None:
    from sordino.server.metrics import ServerMetrics
    from sordino.server.prompts import ServedPrompts
    from sordino.server.run import run_server
    from sordino.server.serving import Idle, ServerLimits
    from sordino.server.start import Models

    metrics = ServerMetrics()
    opener = _Opener(model, library, engine, metrics)
    models = Models(opener.open, served.others)
    idle = Idle(ServedPrompts(None, library), metrics, ServerLimits())
    # Both flags are PyTorch's.
    page = (
        None if options.no_ui else _page(models, idle, "torch" if opener.for_torch else engine.runner, access.api_key)
    )
    remembered = page.remembered() if page is not None and not model.model else None
    name = model.model or ("smollm2" if page is None else remembered)
    if name is None and served.soft_prompt is not None:
        raise ConfigError("a default soft prompt needs a model", where="--soft-prompt", do="add --model")
    with closing(models), closing(page) if page else nullcontext():
        serving = _first(models, name, may_fail=remembered is not None) or idle
        # What a client wants is not confirmed at the terminal.
        opener.ask = False
        if served.soft_prompt is not None:
            serving.prompts.set_default(served.soft_prompt)
        address = address_of(listening)
        _show_ready(serving, address, with_page=page is not None)
        if page is not None:
            page.start(near(address) if options.opens else None, served=None if isinstance(serving, Idle) else name)
        run_server(listening, serving, models, access, page.add if page else None, on_stop=_show_stopping)


@dataclass
class _Opener:
    """Opens models by name, as the options say. ask: whether to confirm a conversion at the terminal."""

    choice: ModelChoice
    library: Library
    engine: EngineOptions
    metrics: ServerMetrics
    ask: bool = True

    @property
    def for_torch(self) -> bool:
        return self.choice.device is not None or self.choice.dtype is not None

    @contextmanager
    def open(self, name: str) -> Iterator[Serving]:
        from sordino.engine.runners.build import running
        from sordino.server.start import opened

        choice = replace(self.choice, model=name)
        with (
            running(
                name,
                self.engine,
                lambda: choice.load(ask=self.ask),
                for_torch=self.for_torch,
                status=lambda: err.status(f"Loading {one_line(name)} ..."),
                notify=lambda line: err.print(one_line(line)),
            ) as (base, backend),
            opened(base, backend, self.library, metrics=self.metrics) as serving,
        ):
            yield serving


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


def _show_stopping() -> None:
    err.print("Finishing the running requests before stopping; Ctrl-C again stops at once.")


def _show_ready(serving: Serving | Idle, address: str, *, with_page: bool) -> None:
    from sordino.server.serving import Idle

    here = near(address)
    if isinstance(serving, Idle):
        out.print(f"Ready: at {address}, without a model")
        out.print(f"Next:  open {here} in a browser and choose a model, or start with --model smollm2; Ctrl-C stops")
        return
    default, count = serving.prompts.default, len(serving.prompts.usable())
    out.print(
        f"Ready: {one_line(serving.model)} at {address}, run by {serving.runner}, with {count} soft prompts of the library"
        + (f"; default {one_line(default)}" if default else "")
    )
    if with_page:
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
@named_model_option()
@library_option()
@setting_options(Access, "port", "api_key", given_as="access")
@click.pass_context
def ui(context: click.Context, model: ModelChoice, library: Library, access: Access) -> None:
    """Open the page: load a soft prompt, watch the lamp turn green, write, train.

    The same as `sordino serve --open`, which has more options.
    """
    if find_spec("websockets") is None:
        raise MissingExtra("the page's packages are not installed", got="websockets", do="pip install 'sordino[ui]'")
    context.invoke(serve, model=model.model, library=library, port=access.port, api_key=access.api_key, opens=True)
