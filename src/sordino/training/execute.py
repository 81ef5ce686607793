"""Run a training job on a loaded base model, from its texts to the soft prompt's file. Prints nothing: events say what happens.

execute: all of it      follow: a prepared run, from its first step      dry_run: the texts, and what training on them costs
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from sordino.errors import BadInput, Diverged, StorageError
from sordino.models.base_model import BaseModel
from sordino.training.calibration import CALIBRATION, Calibration
from sordino.training.checkpoint import FILE as CHECKPOINT
from sordino.training.distil.config import DistilConfig
from sordino.training.distil.measuring import LessonKept
from sordino.training.distil.prepare import Lesson, prepare_distillation, prepare_lesson, with_continuations
from sordino.training.events import HTML, Event, Finished, OnEvent, Started, TextsRead, Working, nobody
from sordino.training.finder import find_learning_rate
from sordino.training.job import Job, read_prompt, store
from sordino.training.judging import Judging
from sordino.training.loop import Run, train
from sordino.training.result import TrainResult, take_part, write_result
from sordino.training.run import PreparedRun, estimate_group, prepare
from sordino.training.strategy import SINGLE_PROCESS, Strategy, agreed_number

LOCK = "lock"
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
    """Read, calibrate, train, measure, write. None where the run was asked to stop: its folder holds a checkpoint; and in a process
    that does not save.

    calibration: what of the job's settings is measured first. resume: go on from the checkpoint in the job's folder, with
    `stored_job`. on_event: called with each `RunEvent` as it happens. should_stop: called after every step.
    Raises SordinoError.
    """
    lesson = None if job.distil is None else taught(job, base, job.distil, on_event)
    prepared = read_texts(job, base, on_event) if lesson is None else lesson_read(job, base, lesson, on_event)
    if not resume:
        job = calibrated(job, prepared, calibration, on_event, strategy)
    return follow(job, prepared, resume=resume, on_event=on_event, should_stop=should_stop, strategy=strategy)


def taught(job: Job, base: BaseModel, config: DistilConfig, on_event: OnEvent = nobody) -> Lesson:
    """What the teacher wrote, in the job's folder, or writes now. Raises as `prepare_lesson` and `with_continuations`."""
    on_event(Working("Reading the text"))
    # Before the folder is made: a text that is refused leaves nothing behind.
    lesson = prepare_lesson(base, job, config)
    with alone_in(job.folder):
        return with_continuations(base, job, lesson, config, on_event)


def lesson_read(job: Job, base: BaseModel, lesson: Lesson, on_event: OnEvent = nobody) -> PreparedRun:
    """A run on a lesson's examples. Raises as `prepare_distillation`."""
    prepared = prepare_distillation(base, job, lesson, read_prompt, started=job.started)
    prepared = replace(prepared, measure=LessonKept(base, lesson))
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
    calibrated(job, read_texts(job, base, on_event), replace(calibration, find_lr=False), on_event, strategy)


def read_texts(job: Job, base: BaseModel, on_event: OnEvent = nobody) -> PreparedRun:
    """Read, split and cut the texts, and choose the first matrix. Raises DataError, ConfigError, OutOfMemory."""
    on_event(Working("Reading the texts"))
    prepared = prepare(base, job.config, job.texts, read_prompt, started=job.started, on_event=on_event)
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


def calibrated(
    job: Job,
    prepared: PreparedRun,
    calibration: Calibration,
    on_event: OnEvent = nobody,
    strategy: Strategy = SINGLE_PROCESS,
) -> Job:
    """The job with the steps and the learning rate that measurements choose. Raises ConfigError, OutOfMemory."""
    on_event(Working("Measuring this machine"))
    cost = estimate_group([prepared], calibration, strategy)
    on_event(cost)
    config = replace(prepared.config, steps=cost.steps)
    if calibration.find_lr:
        rate = found_rate(replace(prepared, config=config), on_event)
        config = replace(config, lr=agreed_number(strategy, rate))
    return replace(job, config=config)


def found_rate(prepared: PreparedRun, on_event: OnEvent) -> float:
    on_event(Working("Trying learning rates"))
    rates = find_learning_rate(prepared)
    on_event(rates)
    return rates.best


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
            # What an earlier run left must not be taken for this one's, should this one be killed before its first checkpoint.
            for earlier in (CHECKPOINT, HTML):
                (job.folder / earlier).unlink(missing_ok=True)
            store(job, prepared.start.how)
        on_event(Started(prepared.start.how, job.config.steps))
        loop = partial(train, resume=resume, should_stop=should_stop, strategy=strategy)
        finished = _train(job, prepared, loop, on_event)
        if finished.why == "stopped":
            return None
        judging = judging or prepared.judging(finished.progress.step)
        if not strategy.saves:
            if strategy.together:
                take_part(job, prepared, finished, judging)
            return None
        return write_result(job, prepared, finished, judging, on_event)


def _train(
    job: Job, prepared: PreparedRun, loop: Callable[[BaseModel, Run], Iterator[Event]], on_event: OnEvent
) -> Finished:
    run = Run("", prepared.data, job.config, job.folder, prepared.start.matrix_PD)
    try:
        with deterministic(prepared.base):
            for event in loop(prepared.base, run):
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
