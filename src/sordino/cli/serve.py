"""serve and ui: the HTTP server in this process."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from sordino import formats
from sordino.cli.console import err, note, one_line, out, warn
from sordino.cli.loading import ModelChoice, base_model_options
from sordino.cli.options import library_option, setting_options
from sordino.engine.config import EngineOptions
from sordino.engine.runners.llama_library import STRENGTHS
from sordino.errors import MissingExtra, SoftPromptFileError
from sordino.library.library import Library
from sordino.models import files
from sordino.models.sizes import check_sizes
from sordino.prompts.attention import can_give
from sordino.prompts.mixture import components_of
from sordino.prompts.prompt import attention_of
from sordino.server.addresses import Access, address_of, near
from sordino.server.options import PageOptions, ServedOptions

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sordino.engine.backend import Backend
    from sordino.models.description import DescribedModel
    from sordino.server.serving import Idle, Serving


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
    if engine.runner == "vllm":
        from sordino.engine.vllm.start import check_installed

        # Without --model nothing else asks for it before the page does.
        check_installed()
    warn(*library.absences())

    for name in filter(None, [model.model, *served.others]):
        files.resolve(name)
    only_torch = model.only_torch
    # vLLM says itself what it does not support.
    if not only_torch and served.soft_prompt is not None and engine.runner != "vllm":
        only_torch = _only_torch(library, served.soft_prompt, model.model)
    # Before PyTorch is imported, which takes seconds.
    with access.listen() as listening:
        try:
            from sordino.engine.runners.build import running
            from sordino.server.run import log_requests, service
            from sordino.server.start import Opener
        except ImportError as error:
            raise MissingExtra(
                "the server's packages are not installed", got=error.name or error, do="pip install 'sordino[serve]'"
            ) from None
        if logged:
            log_requests()
        confirms = True

        def run(name: str) -> AbstractContextManager[tuple[DescribedModel, Backend]]:
            return running(
                name,
                engine,
                lambda: replace(model, model=name).load(ask=confirms),
                only_torch=only_torch,
                status=lambda: err.status(f"Loading {one_line(name)} ..."),
                notify=note,
            )

        asked = replace(engine, runner="torch") if only_torch and engine.runner != "vllm" else engine
        opener = Opener(run, library, asked)
        with_page = not page.no_ui and page_is_installed()
        if not (with_page or page.no_ui):
            warn("no page at /: pip install 'sordino[ui]' adds it")
        with service(opener, model.model, served, with_page=with_page, warn=warn) as begun:
            # What a client wants is not confirmed at the terminal.
            confirms = False
            _show_ready(begun.first, address_of(listening), with_page=with_page)
            stopping = "Finishing the running requests before stopping; Ctrl-C again stops at once."
            begun.run(listening, access, show_page=page.opens, on_stop=lambda: err.print(stopping))
    err.print("Stopped.")


def _only_torch(library: Library, name: str, model: str) -> str:
    """What llama.cpp cannot do of a default soft prompt, "" where nothing. Raises NotInLibrary, and DoesNotFit for other sizes than
    the model's, where one is named."""
    try:
        prompt = formats.read_any(library.entry(name).path)
    except SoftPromptFileError:
        # For the page to show.
        return ""
    if model:
        check_sizes(model, [prompt])
    given = all(can_give(STRENGTHS, attention_of(part).strength) for part in components_of(prompt))
    return "" if given else f"llama.cpp does not support the strength of {one_line(name)}"


def page_is_installed() -> bool:
    return find_spec("websockets") is not None


def _show_ready(serving: Serving | Idle, address: str, *, with_page: bool) -> None:
    from sordino.server.serving import Idle

    here = near(address)
    if isinstance(serving, Idle):
        out.print(f"Ready: at {address}, without a model")
        out.print(f"Next:  open {here} in a browser and choose a model, or start with --model smollm2; Ctrl-C stops")
        return
    if serving.prompts.left_out:
        warn(serving.prompts.left_out)
    default, count = serving.prompts.default, len(serving.prompts.usable())
    out.print(
        f"Ready: {one_line(serving.model)} at {address}, run by {serving.runner}, "
        f"with {count} soft prompt{'s' * (count != 1)} of the library"
        + (f"; default {one_line(default)}" if default else "")
    )
    if with_page:
        out.print(f"Next:  open {here} in a browser, or point an OpenAI client to {here}/v1; Ctrl-C stops")
    else:
        out.print(f"Next:  point an OpenAI client to {here}/v1, or a KoboldAI client to {here}; Ctrl-C stops")


@click.command()
@setting_options(ModelChoice, "model", "quantise", "offload", given_as="model")
@library_option()
@setting_options(Access, "port", "api_key", given_as="access")
@click.pass_context
def ui(context: click.Context, model: ModelChoice, library: Library, access: Access) -> None:
    """Open the page: load a soft prompt, watch the lamp turn green, write, train.

    The same as `sordino serve --open`, which has more options; but if another program has the port, this takes the next free one.
    """
    check_page()
    open_page(context, access, **vars(model), library=library)


def check_page() -> None:
    """Raises MissingExtra."""
    if not page_is_installed():
        raise MissingExtra("the page's packages are not installed", got="websockets", do="pip install 'sordino[ui]'")


def open_page(context: click.Context, access: Access, **served: Any) -> None:
    """Serve, at the next free port, and show the page. served: `serve`'s parameters."""
    free = access.at_free_port()
    if free != access:
        err.print(f"Another program listens at port {access.port}: the page is at port {free.port}.")
    context.invoke(serve, port=free.port, api_key=access.api_key, opens=True, **served)
