"""`sordino demo`: the whole way from texts to a soft prompt, on texts that come with the package."""

from __future__ import annotations

import math
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sordino.cli.options import device_option

if TYPE_CHECKING:
    from sordino.models.base_model import BaseModel
    from sordino.prompts.soft_prompt import SoftPrompt
    from sordino.training.job import Job
    from sordino.training.result import Judging

# Not "keeper": a soft prompt of that name comes with the library.
NAME = "my-keeper"
MODEL = "smollm2"
INSTRUCTION = "The log of a lighthouse keeper, who writes down his days in a dry and particular voice:"
# What the run's samples continue, and then two more: nothing in them is about lighthouses.
OPENINGS = (
    "The stranger knocked at the door, and",
    "On Tuesday my sister wrote to say that",
    "There was nothing for dinner but",
)
MINUTES = 2.5
SAMPLE_TOKENS = 48
CONTINUATION_TOKENS = 70

# Below this nothing can be heard; above it a fast machine would only learn the corpus by heart.
FEWEST_STEPS, MOST_STEPS = 10, 300
_EVALUATIONS, _SAMPLES = 6, 5

_EXCERPTS = (64, 256)
_DRAWS = 2
MEASURING_SECONDS = 30.0
# A forward pass takes a little less than half as long as a step over the same tokens.
PASSES_A_STEP = 2.0


@click.command(short_help="Train a soft prompt and see a model's voice change, in a few minutes.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("sordino-demo"),
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
@device_option()
def demo(out: Path, minutes: float, overwrite: bool, device: str | None) -> None:
    """Train a soft prompt on a lighthouse keeper's log and see the bundled model take on his voice.

    Trains for a few minutes and shows samples on the way, measures the result on entries that were held out, and
    continues three texts without and with it.
    """
    if not math.isfinite(minutes):
        raise click.BadParameter("not a number of minutes", param_hint="--minutes")
    job = _job(out, device, overwrite=overwrite)
    from sordino.cli.loading import loaded_model

    run(job, loaded_model(MODEL, None, device), minutes)


def run(job: Job, base: BaseModel, minutes: float) -> SoftPrompt | None:
    """The demo on a loaded base model. None where the user stopped the training."""
    from dataclasses import replace

    from sordino.cli.console import out as say
    from sordino.cli.training_display import RunDisplay, show_stopped
    from sordino.training.events import Working
    from sordino.training.execute import follow, read_texts
    from sordino.training.run import estimate

    say.print(f"Teaching {base.name} the voice of a lighthouse keeper: {job.config.tokens} vectors are trained.")
    say.print(f"The model itself ({base.network.num_parameters() / 1e6:.0f} million numbers) stays as it is.")
    display = RunDisplay()
    with display:
        prepared = read_texts(job, base, display.show)
    sample_seconds = _show_unchanged(base)
    with display:
        display.show(Working("Measuring this machine"))
        cost = estimate(prepared)
    besides = (_EVALUATIONS + 1) * cost.evaluation_seconds + _SAMPLES * sample_seconds
    steps = steps_for(minutes, cost.step_seconds, besides)
    evaluate_every, sample_every = math.ceil(steps / _EVALUATIONS), math.ceil(steps / _SAMPLES)
    config = replace(prepared.config, steps=steps, evaluate_every=evaluate_every, sample_every=sample_every)
    job = replace(job, config=config)
    took = (steps * cost.step_seconds + besides) / 60
    say.print(
        f"{steps} steps of about {cost.step_seconds:.1f} s on this machine: about {took:.1f} minutes, samples included."
    )
    judging = _judging(config.batch * config.row_tokens / cost.step_seconds)
    with display:
        made = follow(job, prepared, judging=judging, on_event=display.show, should_stop=display.should_stop)
    if made is None:
        show_stopped(display, job.folder, f" of {steps}; saved.")
        return None
    _show_continuations(base, made.prompt)
    _show_what_next(job)
    return made.prompt


def steps_for(minutes: float, step_seconds: float, besides: float) -> int:
    """How many steps fit into `minutes`, between the fewest that show anything and the most that are of use.

    besides: seconds that evaluations and samples take.
    """
    return min(MOST_STEPS, max(FEWEST_STEPS, int((minutes * 60 - besides) / step_seconds)))


def heldout_tokens(trained_a_second: float, conditions: int) -> int:
    """How many held-out tokens can be measured under so many conditions in MEASURING_SECONDS, given training's speed."""
    return min(8192, max(512, int(MEASURING_SECONDS * PASSES_A_STEP * trained_a_second / conditions)))


def _job(folder: Path, device: str | None, *, overwrite: bool) -> Job:
    """The demo's run. Raises BadInput before anything is loaded or written."""
    from sordino.errors import BadInput
    from sordino.prompts.soft_prompt import Metadata
    from sordino.training.config import TrainConfig
    from sordino.training.job import Job
    from sordino.training.run import TextPaths

    # The package is always a folder: its models and libraries are files too.
    texts = Path(__file__).parents[1] / "data" / "keeper"
    config = TrainConfig(validation_tokens=1024, sample_text=OPENINGS[0], sample_tokens=SAMPLE_TOKENS)
    metadata = Metadata(
        name=NAME,
        description="The log of a lighthouse keeper at an invented lighthouse",
        licence="Apache-2.0",
        tags=("demo", "log", "lighthouse"),
        rating="general",
    )
    job = Job(
        TextPaths((texts / "train",), (texts / "heldout",)),
        folder / f"{NAME}.zip",
        MODEL,
        metadata,
        config,
        device,
        overwrite=overwrite,
    )
    if folder.exists() and not folder.is_dir():
        raise BadInput("not a folder", where="--out", got=folder, do="choose another --out")
    if (job.out.exists() or job.folder.exists()) and not overwrite:
        raise BadInput(
            "a demo was run here before", where=folder, do="add --overwrite to run it again, or choose another --out"
        )
    return job


def _judging(trained_a_second: float) -> Judging:
    from sordino.evaluation.config import EvaluateConfig
    from sordino.training.result import Judging

    limit = heldout_tokens(trained_a_second, 3 + _DRAWS * len(_EXCERPTS))
    measuring = EvaluateConfig(excerpt_tokens=_EXCERPTS, excerpt_draws=_DRAWS, limit=limit)
    return Judging(measuring, (INSTRUCTION,), off_domain=False)


def _show_unchanged(base: BaseModel) -> float:
    """What the model writes by itself, so that the first sample has something to differ from. How long it took, seconds."""
    from sordino.cli.console import out, printable
    from sordino.engine.generate import TextRequest, complete
    from sordino.engine.sampling import Sampling

    began = time.monotonic()
    (text,) = complete(base, [TextRequest(OPENINGS[0])], Sampling(max_tokens=SAMPLE_TOKENS))
    took = time.monotonic() - began
    out.print("\nBy itself the model goes on like this:", style="bold")
    out.print(f"  {OPENINGS[0]}|{printable(text)}\n")
    return took


def _show_continuations(base: BaseModel, prompt: SoftPrompt) -> None:
    from sordino.cli.console import out
    from sordino.cli.write import WITHOUT, show_side_by_side
    from sordino.training.result import sample_pairs

    out.print("\nThree texts continued without and with the soft prompt, from the same seed:", style="bold")
    for pair in sample_pairs(base, prompt, OPENINGS, seed=0, tokens=CONTINUATION_TOKENS):
        out.print()
        show_side_by_side(pair["prompt"], [WITHOUT, NAME], [pair["without"], pair["with"]])


def _show_what_next(job: Job) -> None:
    from sordino.cli.console import out
    from sordino.training.report import HTML

    program, file = _shown(_program()), _shown(job.out)
    out.print("\nYour soft prompt and its report:", style="bold")
    out.print(f"  {job.out.resolve()} ({job.out.stat().st_size / 1024:.0f} KiB)")
    out.print(f"  {job.folder.resolve() / HTML}")
    out.print("\nWhat next:", style="bold")
    for what, how in (
        ("write with it", f'{program} generate "The lamp" --soft-prompt {file}'),
        ("compare", f'{program} compare "It rained all day" --soft-prompt {file}'),
        ("keep it", f"{program} install {file}   (from then on it is called {NAME})"),
        ("KoboldAI", f"copy {job.out.name} into its softprompts folder; it goes with the model SmolLM2-135M-Instruct"),
        ("your own texts", f"{program} train FOLDER_OF_TEXTS"),
    ):
        out.print(f"  {what:<16}{how}")


def _program() -> Path:
    """What to type: `sordino`, or where it lies if it cannot be called by its name, as in a clone's .venv."""
    called = Path(sys.argv[0])
    if shutil.which("sordino") or called.stem != "sordino" or not called.exists():
        return Path("sordino")
    here = Path.cwd()
    return called.resolve().relative_to(here) if called.resolve().is_relative_to(here) else called


def _shown(path: Path) -> str:
    return f'"{path}"' if " " in str(path) else str(path)
