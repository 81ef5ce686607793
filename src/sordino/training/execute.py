"""Run a training job on a loaded base model, from its texts to the soft prompt's file. Prints nothing: events say what happens.

execute: all of it      follow: a prepared run, from its first step      dry_run: the texts, and what training on them costs
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from sordino.errors import BadInput, ConfigError, Diverged, StorageError
from sordino.models.base_model import BaseModel
from sordino.training.answers import own_answers
from sordino.training.calibration import CALIBRATION, Calibration
from sordino.training.checkpoint import FILE as CHECKPOINT
from sordino.training.distil.measuring import LessonKept
from sordino.training.distil.prepare import prepare_distillation, prepare_lesson
from sordino.training.distil.teacher import continuations
from sordino.training.events import (
    HTML,
    Event,
    Finished,
    LearningRates,
    OnEvent,
    OnGroupEvent,
    Started,
    TextsRead,
    Validation,
    Working,
    nobody,
    working,
)
from sordino.training.job import Job, store
from sordino.training.judging import Judging
from sordino.training.loop import train
from sordino.training.result import TrainResult, take_part, write_result
from sordino.training.run import PreparedRun, estimate, prepare
from sordino.training.strategy import SINGLE_PROCESS, Strategy, agreed_number

LOCK = "lock"
_WRITING = "Writing with the text in front"
ShouldStop = Callable[[], bool]


def execute(
    job: Job,
    base: BaseModel,
    calibration: Calibration = CALIBRATION,
    *,
    resume: bool = False,
    on_event: OnEvent = nobody,
    should_stop: ShouldStop = lambda: False,
    strategy: Strategy = SINGLE_PROCESS,
) -> TrainResult | None:
    """Read, calibrate, train, measure, write. None if the run was asked to stop, and its folder then holds a checkpoint; None too
    in a process that does not save.

    calibration: what of the job's settings is measured first. resume: go on from the checkpoint in the job's folder, with
    `stored_job`. on_event: called with each `RunEvent` as it happens. should_stop: called after every step.
    Raises SordinoError.
    """
    prepared = (read_texts if job.distil is None else read_lesson)(job, base, on_event)
    if not resume:
        job = _calibrated(job, prepared, calibration, on_event, strategy)
    return follow(job, prepared, resume=resume, on_event=on_event, should_stop=should_stop, strategy=strategy)


def read_lesson(job: Job, base: BaseModel, on_event: OnEvent = nobody) -> PreparedRun:
    """A run on what the teacher wrote, in the job's folder, or writes now.

    Raises as `prepare_lesson`, `continuations` and `prepare_distillation`.
    """
    assert job.distil is not None
    on_event(Working("Reading the text"))
    # Before the folder is made: a text that is refused leaves nothing behind.
    lesson = prepare_lesson(base, job, job.distil)
    on_event(Working(_WRITING))
    with alone_in(job.folder):
        written = continuations(base, lesson.openings, job.distil, job.folder, working(_WRITING, on_event))
    lesson = replace(lesson, written=tuple(written))
    prepared = replace(prepare_distillation(base, job, lesson), measure=LessonKept(base, lesson))
    on_event(texts_read(prepared))
    return prepared


def dry_run(
    job: Job,
    base: BaseModel,
    calibration: Calibration = CALIBRATION,
    *,
    on_event: OnEvent = nobody,
    strategy: Strategy = SINGLE_PROCESS,
) -> None:
    """What the texts are and what training on them would cost, as the events `TextsRead` and `Cost`. Raises SordinoError."""
    _calibrated(job, read_texts(job, base, on_event), replace(calibration, find_lr=False), on_event, strategy)


def read_texts(job: Job, base: BaseModel, on_event: OnEvent = nobody) -> PreparedRun:
    """Read, split and cut the texts, and choose the first matrix. Raises DataError, ConfigError, OutOfMemory."""
    on_event(Working("Reading the texts"))
    prepared = prepare(base, job.config, job.texts, started=job.started, on_event=on_event)
    on_event(texts_read(prepared))
    return prepared


def texts_read(prepared: PreparedRun) -> TextsRead:
    splits = prepared.splits
    return TextsRead(
        train=len(splits.train),
        validation=len(splits.validation),
        heldout=len(splits.heldout),
        examples=len(prepared.data.train),
        tokens=prepared.train_tokens,
        how=splits.how,
        notes=prepared.notes,
        duplicates=tuple(splits.duplicates),
        sample_text=prepared.config.sample_text,
    )


def _calibrated(
    job: Job, prepared: PreparedRun, calibration: Calibration, on_event: OnEvent, strategy: Strategy
) -> Job:
    return calibrated({"": job}, {"": prepared}, calibration, lambda _, event: on_event(event), strategy)[""]


def calibrated(
    jobs: Mapping[str, Job],
    prepared: Mapping[str, PreparedRun],
    calibration: Calibration,
    on_event: OnGroupEvent,
    strategy: Strategy,
) -> dict[str, Job]:
    """The jobs with the steps and the learning rates that measurements choose. Raises ConfigError, OutOfMemory."""
    on_event("", Working("Measuring this machine"))
    cost = estimate(list(prepared.values()), calibration, strategy)
    on_event("", cost)
    found = {}
    for name, job in jobs.items():
        config = replace(prepared[name].config, steps=cost.steps)
        if calibration.find_lr:
            on_event(name, Working("Trying learning rates"))
            rates = find_learning_rate(replace(prepared[name], config=config))
            on_event(name, rates)
            config = replace(config, lr=agreed_number(strategy, rates.best))
        found[name] = replace(job, config=config)
    return found


def begin(job: Job, prepared: PreparedRun) -> None:
    """Write the job into its folder, as a run that has taken no step. Raises StorageError."""
    # What an earlier run left must not be taken for this one's, should this one be killed before its first checkpoint.
    for earlier in (CHECKPOINT, HTML):
        (job.folder / earlier).unlink(missing_ok=True)
    store(job, prepared.start.how)


def answered(
    runs: Sequence[PreparedRun], folder: Path, *, resume: bool, on_event: OnEvent = nobody, strategy: Strategy
) -> list[PreparedRun]:
    """The runs, on one base model, with the model's own answers where their settings ask for them. folder: that they go on from.

    Raises as `own_answers`.
    """
    asking = [run.config.row_tokens for run in runs if run.config.answers]
    if not asking:
        return list(runs)
    # Before the base model is placed: what a shard gathers while text is written cannot be trained on.
    answers = own_answers(runs[0].base, min(asking), folder, resume=resume, on_event=on_event, strategy=strategy)
    return [replace(run, data=replace(run.data, answers=answers if run.config.answers else ())) for run in runs]


def follow(
    job: Job,
    prepared: PreparedRun,
    *,
    resume: bool = False,
    judging: Judging | None = None,
    on_event: OnEvent = nobody,
    should_stop: ShouldStop = lambda: False,
    strategy: Strategy = SINGLE_PROCESS,
) -> TrainResult | None:
    """Train as the job says, then measure, write, report. None as from `execute`. Raises SordinoError."""
    prepared = replace(prepared, config=job.config)
    with alone_in(job.folder) if strategy.saves else nullcontext():
        if strategy.saves and not resume:
            begin(job, prepared)
        (prepared,) = answered([prepared], job.folder, resume=resume, on_event=on_event, strategy=strategy)
        on_event(Started(prepared.start.how, job.config.steps))
        run = prepared.run(job.folder)
        steps = train(prepared.base, run, resume=resume, should_stop=should_stop, strategy=strategy)
        finished = _train(steps, job, prepared.base, on_event)
        if finished.why == "stopped":
            return None
        judging = judging or prepared.judging(finished.progress.step)
        if not strategy.saves:
            if strategy.together:
                take_part(job, prepared, finished, judging)
            return None
        return write_result(job, prepared, finished, judging, on_event)


def _train(steps: Iterator[Event], job: Job, base: BaseModel, on_event: OnEvent) -> Finished:
    try:
        with deterministic(base):
            for event in steps:
                on_event(event)
                if isinstance(event, Finished):
                    return event
    except Diverged as error:
        raise Diverged(
            f"{error.what} (the last good state is in {job.folder})", where=error.where, got=error.got, do=error.do
        ) from None
    raise AssertionError("training ended without `Finished`")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Two processes that train in one folder would each overwrite the other's checkpoints. Raises BadInput, StorageError."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise BadInput(
            "another process is training here", where=folder, do="wait for it, or choose another folder"
        ) from None
    except OSError as error:
        raise StorageError(
            f"the run's folder cannot be used ({error.strerror})", where=folder, do="choose another"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def deterministic(base: BaseModel) -> Iterator[None]:
    """On CUDA, sums in one order: otherwise no two runs agree, nor a resumed one with one that never stopped."""
    if base.device.type != "cuda":
        yield
        return
    # cuBLAS reads it when its first handle is made; without it some products have no fixed order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


# A learning rate by trial ---------------------------------------------------------------------------------------------

# In units of the embedding RMS. On SmolLM2 0.25 to 1.0 end within 0.015 nats of each other, 0.25 lowest (LOG.md).
RATES = (0.06, 0.12, 0.25, 0.5, 1.0)
STEPS = 8


def find_learning_rate(prepared: PreparedRun) -> LearningRates:
    """Train STEPS steps at each of RATES from the same start, and take the one whose validation loss ends lowest.

    Raises ConfigError.
    """
    if not prepared.data.validation:
        raise ConfigError(
            "there is no validation set to choose by", where="--find-lr", do="give more text, or set --lr"
        )
    tried = tuple((rate, _trial(prepared, rate)) for rate in RATES)
    best, loss = min(tried, key=lambda pair: pair[1])
    if not math.isfinite(loss):
        raise ConfigError("every learning rate diverged", where="--find-lr", got=RATES, do="use --dtype float32")
    return LearningRates(best, tried)


def _trial(prepared: PreparedRun, rate: float) -> float:
    config = replace(
        prepared.config, lr=rate, steps=STEPS, evaluate_every=STEPS, sample_every=STEPS + 1, patience=0,
        # They are not written yet.
        answers=0.0,
    )  # fmt: skip
    loss = math.inf
    with tempfile.TemporaryDirectory() as folder:
        try:
            for event in train(prepared.base, replace(prepared, config=config).run(Path(folder))):
                loss = event.loss if isinstance(event, Validation) else loss
        except Diverged:
            return math.inf
    return loss
