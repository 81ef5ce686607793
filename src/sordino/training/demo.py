"""The demo's run: a soft prompt on texts that come with the package, as long as a machine can train in some minutes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from sordino.errors import BadInput
from sordino.evaluation.config import EvaluateConfig
from sordino.library.outputs import Outputs, run_folder
from sordino.models.bundled import DEFAULT_MODEL
from sordino.training.config import Description, Loading, TextPaths, TrainConfig
from sordino.training.events import Cost
from sordino.training.job import Job, RunOptions, train_job
from sordino.training.judging import PASSES_A_STEP, Judging, RunSize, work

# Not "keeper": a soft prompt of that name comes with the library.
NAME = "my-keeper"
INSTRUCTION = "The log of a lighthouse keeper, who writes down his days in a dry and particular voice:"
# What the run's samples continue, and then two more: nothing in them is about lighthouses.
OPENINGS = (
    "The stranger knocked at the door, and",
    "On Tuesday my sister wrote to say that",
    "There was nothing for dinner but",
)
SAMPLE_TOKENS = 48
# The length of each continuation at the end.
CONTINUATION_TOKENS = 70
# They are written together: about so many times as long as one.
_BATCH_OF_ALL = 2

# Below this nothing can be heard; above it a fast machine would only learn the corpus by heart.
FEWEST_STEPS, MOST_STEPS = 10, 300
_EVALUATIONS, _SAMPLES = 6, 5

_EXCERPTS = (64, 256)
_DRAWS = 2
MEASURING_SECONDS = 30.0


def finished_file(folder: Path) -> Path:
    return folder / f"{NAME}.zip"


def demo_job(folder: Path, device: str | None, *, overwrite: bool) -> Job:
    """The demo's run. Raises BadInput before anything is loaded or written."""
    file = finished_file(folder)
    if folder.exists() and not folder.is_dir():
        raise BadInput("not a folder", where="--out", got=folder, do="choose another --out")
    if (file.exists() or run_folder(file).exists()) and not overwrite:
        raise BadInput(
            "a demo was run here before", where=folder, do="add --overwrite to run it again, or choose another --out"
        )
    # The package is always a folder: its models and libraries are files too.
    texts = Path(__file__).parents[1] / "data" / "keeper"
    config = TrainConfig(validation_tokens=1024, sample_text=OPENINGS[0], sample_tokens=SAMPLE_TOKENS)
    about = Description(
        description="The log of a lighthouse keeper at an invented lighthouse",
        licence="Apache-2.0",
        tags="demo, log, lighthouse",
        rating="general",
    )
    run = RunOptions(Outputs(file, name=NAME, overwrite=overwrite), about, DEFAULT_MODEL, Loading(device))
    return train_job(TextPaths((texts / "train",), (texts / "heldout",)), config, run)


def fitted_to_machine(job: Job, cost: Cost, sample_seconds: float, minutes: float) -> tuple[Job, float]:
    """The run with as many steps as take about `minutes` here, and how many minutes it takes, samples and evaluations included.

    sample_seconds: how long a sample takes.
    """
    besides = (_EVALUATIONS + 1) * cost.evaluation_seconds + _SAMPLES * sample_seconds
    steps = steps_for(minutes, cost.step_seconds, besides)
    evaluate_every, sample_every = math.ceil(steps / _EVALUATIONS), math.ceil(steps / _SAMPLES)
    config = replace(job.config, steps=steps, evaluate_every=evaluate_every, sample_every=sample_every)
    return replace(job, config=config), (steps * cost.step_seconds + besides) / 60


def minutes_afterwards(
    judging: Judging, config: TrainConfig, size: RunSize, cost: Cost, sample_seconds: float
) -> float:
    """How long it takes to measure the trained prompt and to continue the openings without and with it."""
    measuring = work(judging, config, size) / size.step_work * cost.step_seconds
    continuing = _BATCH_OF_ALL * CONTINUATION_TOKENS / SAMPLE_TOKENS * sample_seconds
    return (measuring + continuing) / 60


def steps_for(minutes: float, step_seconds: float, besides: float) -> int:
    """How many steps fit into `minutes`, between the fewest that show anything and the most that are of use.

    besides: seconds that evaluations and samples take.
    """
    return min(MOST_STEPS, max(FEWEST_STEPS, int((minutes * 60 - besides) / step_seconds)))


def heldout_tokens(trained_a_second: float, conditions: int) -> int:
    """How many held-out tokens can be measured under so many conditions in MEASURING_SECONDS, given training's speed."""
    return min(8192, max(512, int(MEASURING_SECONDS * PASSES_A_STEP * trained_a_second / conditions)))


def demo_judging(config: TrainConfig, step_seconds: float) -> Judging:
    """How the result is measured: on as many held-out tokens as fit into half a minute."""
    trained_a_second = config.batch * config.row_tokens / step_seconds
    limit = heldout_tokens(trained_a_second, 3 + _DRAWS * len(_EXCERPTS))
    measuring = EvaluateConfig(excerpt_tokens=_EXCERPTS, excerpt_draws=_DRAWS, limit=limit)
    return Judging(measuring, (INSTRUCTION,), parts=frozenset({"samples", "heldout", "inspection"}))
