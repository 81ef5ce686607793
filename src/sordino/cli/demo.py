"""`sordino demo`: the whole way from texts to a soft prompt, on texts that come with the package."""

from __future__ import annotations

import math
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from sordino.cli import loading
from sordino.cli.console import is_interactive, out, printable
from sordino.cli.options import PATH, setting_options
from sordino.cli.serve import check_page, open_page, page_is_installed
from sordino.cli.write import WITHOUT, show_side_by_side
from sordino.engine.config import Sampling
from sordino.library.library import Library, open_library
from sordino.models.bundled import BUNDLED, DEFAULT_MODEL
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.server.addresses import Access

if TYPE_CHECKING:
    from sordino.models.base_model import BaseModel
    from sordino.training.job import Job

MINUTES = 2.5
DEFAULT_FOLDER = Path("sordino-demo")


@click.command(short_help="Train a soft prompt and see a model's voice change, in a few minutes.")
@click.option(
    "--out",
    "folder",
    type=PATH,
    default=DEFAULT_FOLDER,
    show_default=True,
    metavar="FOLDER",
    help="Where the soft prompt, its run and the report go.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0, 600, min_open=True),
    default=MINUTES,
    show_default=True,
    metavar="N",
    help="About how long to train; 10 to 300 steps.",
)
@click.option("--overwrite", is_flag=True, help="Replace what an earlier demo left there.")
@click.option(
    "--ui",
    "shows_page",
    is_flag=True,
    help="Then open the page with the soft prompt; at once if an earlier demo made it.",
)
@setting_options(loading.ModelChoice, "device", given_as="choice")
@click.pass_context
def demo(
    context: click.Context, folder: Path, minutes: float, overwrite: bool, shows_page: bool, choice: loading.ModelChoice
) -> None:
    """Train a soft prompt on a lighthouse keeper's log and see the bundled model take on his voice.

    Trains for a few minutes and shows samples on the way, measures the result on entries that were held out, and
    continues three texts without and with it.
    """
    if not math.isfinite(minutes):
        raise click.BadParameter("not a number of minutes", param_hint="--minutes")
    if shows_page:
        check_page()
    from sordino.training.demo import demo_job, finished_file

    if not (shows_page and not overwrite and finished_file(folder).is_file()):
        job = demo_job(folder, choice.device, overwrite=overwrite)
        out.print(
            f"In three parts: about {minutes:g} minutes of training, then measuring and three continuations, about one more. "
            f"First the model is loaded; the first time, it is downloaded ({BUNDLED[DEFAULT_MODEL].megabytes} MB)."
        )
        if run(job, loading.loaded_model(DEFAULT_MODEL, job.loading.dtype, choice.device), minutes) is None:
            return
    if shows_page or _wants_page():
        _open_page(context, finished_file(folder), DEFAULT_MODEL)


def _wants_page() -> bool:
    """Ask, where there is somebody to answer and a page to show."""
    if not (is_interactive() and out.is_terminal and page_is_installed()):
        return False
    return click.confirm("\nOpen the page and write with it now?", default=True)


def _open_page(context: click.Context, file: Path, model: str) -> None:
    """With the user's library, followed by the demo's folder."""
    library = Library([*open_library().folders, file.parent])
    name = next(entry.name for entry in library.scan() if entry.path == file.absolute())
    open_page(context, Access(), model=model, library=library, soft_prompt=name)


def run(job: Job, base: BaseModel, minutes: float) -> SinglePrompt | None:
    """The demo on a loaded base model. None where the user stopped the training."""
    from sordino.cli.training_display import RunDisplay, show_stopped
    from sordino.training.demo import demo_judging, fitted_to_machine, minutes_afterwards
    from sordino.training.events import Working
    from sordino.training.execute import follow, read_texts
    from sordino.training.run import estimate

    out.print(f"Teaching {base.name} the voice of a lighthouse keeper: {job.config.tokens} vectors are trained.")
    out.print(f"The model itself ({base.network.num_parameters() / 1e6:.0f} million numbers) stays as it is.")
    display = RunDisplay()
    with display:
        prepared = read_texts(job, base, display.show)
    sample_seconds = _show_unchanged(base)
    with display:
        display.show(Working("Measuring this machine"))
        cost = estimate([prepared])
    job, took = fitted_to_machine(replace(job, config=prepared.config), cost, sample_seconds, minutes)
    steps = job.config.steps
    judging = demo_judging(job.config, cost.step_seconds)
    after = minutes_afterwards(judging, job.config, prepared.size, cost, sample_seconds)
    out.print(
        f"{steps} steps of about {cost.step_seconds:.1f} s on this machine: about {took:.1f} minutes, samples included. Then about "
        f"{after:.1f} to measure and to continue three texts: done in about {took + after:.1f} minutes."
    )
    with display:
        made = follow(job, prepared, judging=judging, on_event=display.show, should_stop=display.should_stop)
    if made is None:
        show_stopped(job.folder, f"{display.reached} of {steps}; saved.")
        return None
    _show_continuations(base, made.prompt)
    _show_what_next(job)
    return made.prompt


def _show_unchanged(base: BaseModel) -> float:
    """Show what the model writes by itself, to compare the first sample with. Returns how long it took, in seconds."""
    from sordino.engine.generate import TextRequest, complete
    from sordino.training.demo import OPENINGS, SAMPLE_TOKENS

    began = time.monotonic()
    (text,) = complete(base, [TextRequest(OPENINGS[0])], Sampling(max_tokens=SAMPLE_TOKENS))
    took = time.monotonic() - began
    out.print("\nBy itself the model goes on like this:", style="bold")
    out.print(f"  {OPENINGS[0]}|{printable(text)}\n")
    return took


def _show_continuations(base: BaseModel, prompt: SinglePrompt) -> None:
    from sordino.training.demo import CONTINUATION_TOKENS, NAME, OPENINGS
    from sordino.training.result import sample_pairs

    out.print("\nThree texts continued without and with the soft prompt, from the same seed:", style="bold")
    for pair in sample_pairs(base, prompt, OPENINGS, seed=0, tokens=CONTINUATION_TOKENS):
        out.print()
        show_side_by_side(pair["prompt"], [WITHOUT, NAME], [pair["without"], pair["with"]])


def _show_what_next(job: Job) -> None:
    from sordino.training.demo import NAME
    from sordino.training.report import HTML

    program, file, folder = quote(str(_program())), quote(str(job.out)), job.out.parent
    there = "" if folder == DEFAULT_FOLDER else f" --out {quote(str(folder))}"
    out.print("\nYour soft prompt and its report:", style="bold")
    out.print(f"  {job.out.resolve()} ({job.out.stat().st_size / 1024:.0f} KiB)")
    out.print(f"  {job.folder.resolve() / HTML}")
    page = "" if page_is_installed() else "   (pip install 'sordino[ui]' adds the page)"
    out.print("\nWhat next:", style="bold")
    for what, how in (
        ("in the browser", f"{program} demo --ui{there}{page}"),
        ("write with it", f'{program} generate "The lamp" --soft-prompt {file}'),
        ("compare", f'{program} compare "It rained all day" --soft-prompt {file}'),
        ("keep it", f"{program} install {file}   (from then on it is called {NAME})"),
        ("KoboldAI", f"copy {job.out.name} into its softprompts folder; it goes with the model SmolLM2-135M-Instruct"),
        ("your own texts", f"{program} train FOLDER_OF_TEXTS"),
    ):
        out.print(f"  {what:<16}{how}")


def _program() -> Path:
    """What to type: `sordino`, or its path where it is not on PATH, as in a clone's .venv."""
    called = Path(sys.argv[0])
    if shutil.which("sordino") or called.stem != "sordino" or not called.exists():
        return Path("sordino")
    here = Path.cwd()
    return called.resolve().relative_to(here) if called.resolve().is_relative_to(here) else called
