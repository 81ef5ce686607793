"""What `sordino train` does, told as it happens: read, reckon, train, measure, write."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from types import FrameType
from typing import Any

import click
import torch
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sordino.cli.console import err, out, printable, warn
from sordino.cli.evaluate import show_report
from sordino.cli.loading import loaded_model
from sordino.cli.training_result import (
    Judging,
    after_training,
    label_of,
    measured_result,
    sample_pairs,
    write_run_report,
)
from sordino.errors import BadInput, ConfigError, Diverged, SordinoError, StorageError
from sordino.evaluation.report import summary
from sordino.formats import file_disclosure, read, write
from sordino.models.base_model import BaseModel
from sordino.prompts.nearest import nearest_words
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.training.checkpoint import FILE as CHECKPOINT
from sordino.training.config import TrainConfig
from sordino.training.events import Finished, Sample, Step, Validation
from sordino.training.finder import find_learning_rate
from sordino.training.job import Job, job_of, store, stored_job
from sordino.training.loop import Run, train
from sordino.training.report import HTML
from sordino.training.run import Prepared, TextPaths, estimate, finish, prepare

LOCK = "lock"


def run(options: Mapping[str, Any]) -> None:
    """The command. Raises SordinoError."""
    resume: Path | None = options["resume"]
    if options["find_lr"] and options["lr"] is not None:
        raise ConfigError("both --lr and --find-lr were given", do="give one of them")
    job = stored_job(resume, options) if resume is not None else job_of(options)
    base = loaded_model(job.model, job.dtype, job.device, ask=not options["as_json"])
    if options["dry_run"]:
        look(job, base, minutes=options["minutes"], as_json=options["as_json"])
        return
    execute(job, base, minutes=options["minutes"], find_lr=options["find_lr"], resume=resume is not None)


def execute(
    job: Job, base: BaseModel, *, minutes: float | None = None, find_lr: bool = False, resume: bool = False
) -> SoftPrompt | None:
    """Run a job on a loaded base model. Returns the soft prompt, or None where the user stopped it."""
    prepared = read_texts(job, base)
    if not resume:
        job = _calibrated(job, prepared, minutes, find_lr=find_lr)
    prompt = follow(job, replace(prepared, config=job.config), resume=resume)
    if prompt is not None:
        out.print(f'Try it:  sordino generate "Once" --soft-prompt {quote(str(job.out))}')
        out.print(f"Keep it: sordino install {quote(str(job.out))}")
    return prompt


def look(job: Job, base: BaseModel, *, minutes: float | None, as_json: bool) -> None:
    """What the texts are and what the run would cost; as JSON two objects, a line each, as soon as each is known."""
    prepared = _prepared(job, base)
    if as_json:
        click.echo(json.dumps({"texts": told_texts(prepared)}))
        sys.stdout.flush()
        click.echo(json.dumps({"cost": asdict(estimate(prepared, minutes=minutes))}))
    else:
        tell_data(prepared)
        _calibrated(job, prepared, minutes, find_lr=False)


def read_texts(job: Job, base: BaseModel) -> Prepared:
    """Read, split and cut the texts, and say what came of it."""
    prepared = _prepared(job, base)
    tell_data(prepared)
    return prepared


def _prepared(job: Job, base: BaseModel) -> Prepared:
    texts = TextPaths(job.data, job.heldout, job.speaker)
    return prepare(base, job.config, texts, read_prompt, started=job.started)


def follow(job: Job, prepared: Prepared, *, resume: bool = False, judging: Judging | None = None) -> SoftPrompt | None:
    """Train as the job says, told as it happens; measure, write, report. None where the user stopped it."""
    with alone_in(job.folder):
        return _follow(job, prepared, judging or after_training(job.config), resume=resume)


def _follow(job: Job, prepared: Prepared, judging: Judging, *, resume: bool) -> SoftPrompt | None:
    if not resume:
        # What an earlier run left must not be taken for this one's, should this one be killed before its first checkpoint.
        (job.folder / CHECKPOINT).unlink(missing_ok=True)
        store(job, prepared.start.how)
    out.print(f"Starting from {printable(prepared.start.how)}. Ctrl-C saves and stops.")
    finished = _watch(job, prepared, resume=resume)
    if finished.why == "stopped":
        say = err if out.reader_left else out
        say.print(f"Stopped after step {finished.progress.step} of {job.config.steps}; saved.")
        say.print(f"Go on with: sordino train --resume {quote(str(job.folder))}")
        return None
    if finished.why == "diverged":
        warn(f"this run diverged behind step {finished.progress.step}; the file holds the best matrix before that")
    if finished.why == "early":
        out.print(f"Stopped early: the validation loss was best at step {finished.progress.best_step}.")
    if finished.progress.best_step == 0:
        out.print("Validation was best before the first step, so the file is what the run started from.")
    return write_result(job, prepared, finished, judging)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Two processes that train in one folder would each overwrite the other's checkpoints."""
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
            f"the run's folder cannot be used ({error.strerror})", where=folder, do="choose another --out"
        ) from error
    try:
        yield
    finally:
        lock.release()


def read_prompt(name: str) -> SoftPrompt:
    from sordino.library.library import open_library

    return read(open_library(()).resolve(name))


# Telling --------------------------------------------------------------------------------------------------------------


def told_texts(prepared: Prepared) -> dict[str, Any]:
    splits, data = prepared.splits, prepared.data
    return {
        "train": len(splits.train),
        "validation": len(splits.validation),
        "heldout": len(splits.heldout),
        "examples": len(data.train),
        "tokens": prepared.train_tokens,
        "how": splits.how,
        "notes": list(prepared.notes),
        "duplicates": list(splits.duplicates),
        "sample_text": prepared.config.sample_text,
    }


def tell_data(prepared: Prepared) -> None:
    splits, data = prepared.splits, prepared.data
    out.print(
        f"Texts: {len(splits.train)} pieces to train on ({len(data.train)} examples, {prepared.train_tokens} tokens), "
        f"{len(splits.validation)} to validate, {len(splits.heldout)} held out."
    )
    out.print(splits.how)
    for note in prepared.notes:
        out.print(note)
    for line in splits.duplicates:
        warn(line)


def _calibrated(job: Job, prepared: Prepared, minutes: float | None, *, find_lr: bool) -> Job:
    with err.status("Measuring this machine ..."):
        cost = estimate(prepared, minutes=minutes)
    config = replace(prepared.config, steps=cost.steps)
    out.print(
        f"{cost.steps} step{'s' if cost.steps > 1 else ''} of about {cost.step_seconds:.1f} s: {clock(cost.seconds)} of "
        "training, then the measuring; "
        f"memory about {cost.memory_bytes / 2**30:.1f} GiB, {cost.free_bytes / 2**30:.1f} GiB more are free."
    )
    if find_lr:
        with err.status("Looking for a learning rate ..."):
            rates = find_learning_rate(replace(prepared, config=config))
        config = replace(config, lr=rates.best)
        out.print(
            f"Learning rate {rates.best:g} (losses: "
            + ", ".join(f"{lr:g}: {loss:.3f}" for lr, loss in rates.tried)
            + ")"
        )
    return replace(job, config=config)


def _watch(job: Job, prepared: Prepared, *, resume: bool) -> Finished:
    with deterministic(prepared.base), stop_on_interrupt() as should_stop, progress_bar() as bar:
        task = bar.add_task("", total=job.config.steps, loss="", val="", speed="")
        try:
            run = Run("", prepared.data, job.config, job.folder, prepared.start.matrix_PD)
            for event in train(prepared.base, run, resume=resume, should_stop=should_stop):
                if isinstance(event, Finished):
                    return event
                show(bar, task, job.config, event)
        except Diverged as error:
            raise Diverged(
                f"{error.what} (the last good state is in {job.folder})", where=error.where, got=error.got, do=error.do
            ) from None
    raise AssertionError("training ended without saying so")


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


def progress_bar(*, named: bool = False) -> Progress:
    """Of one run, or of several with their names in front."""
    return Progress(
        *((TextColumn("{task.description}"),) if named else ()),
        BarColumn(30),
        TextColumn(
            "step {task.completed:.0f}/{task.total:.0f}  {task.fields[loss]}{task.fields[val]}{task.fields[speed]}"
        ),
        TimeRemainingColumn(),
        console=err,
    )


def show(
    bar: Progress, task: TaskID, config: TrainConfig, event: Step | Validation | Sample, *, named: str = ""
) -> None:
    """named: whose event it is, in front of the lines, where there are several runs."""
    if isinstance(event, Step):
        bar.update(
            task,
            completed=event.step,
            loss=f"loss {event.loss:.3f}",
            speed=f"  {event.tokens / event.seconds:.0f} tokens/s",
        )
    elif isinstance(event, Validation):
        bar.update(task, val=f"  validation {event.loss:.3f}")
        bar.console.print(
            f"{named}step {event.step}/{config.steps}: validation loss {event.loss:.4f}{' (best)' if event.best else ''}"
        )
    else:
        bar.console.print(f"{named}step {event.step}, a sample: {printable(event.prompt)}|{printable(event.text)}")


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks the run to stop after its step; the second is an ordinary one. So do a request to terminate, a closed
    terminal, and an output that nobody reads any more. On Windows Ctrl-Break does too: the page can send no other to a process
    group of its own.
    """
    asked = False
    known = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP", "SIGBREAK")]
    # Whoever starts a run under nohup wants it to outlast its terminal.
    numbers = [signal.SIGINT, *(one for one in known if one is not None and signal.getsignal(one) != signal.SIG_IGN)]
    # Asked now: a terminal that was closed is none any more, and what is printed to it raises.
    terminals = [stream for stream in (out, err) if stream.file.isatty()]

    def ask(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        restore()
        if number == getattr(signal, "SIGHUP", None):
            for stream in terminals:
                stream.silence()
        err.print("Stopping after this step ... (Ctrl-C again stops at once)")

    before = {number: signal.signal(number, ask) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield lambda: asked or out.reader_left or err.reader_left
    finally:
        restore()


# Writing --------------------------------------------------------------------------------------------------------------


def write_result(
    job: Job, prepared: Prepared, finished: Finished, judging: Judging, *, brief: bool = False
) -> SoftPrompt:
    """Measure, write the file and the report, and tell of it; `brief` leaves to the report what it holds."""
    base = prepared.base
    draft = finish(prepared, finished, job.metadata, [], {})
    pairs = _sample_pairs(prepared, draft)
    measured = measured_result(prepared, draft, judging)
    if measured is not None and not brief:
        show_report(measured, judging.config.row_tokens)
    prompt = draft.with_metadata(
        samples=tuple(pairs) if job.samples else (),
        heldout=summary(measured, label_of(draft)) if measured is not None else {},
    )
    if not brief:
        out.print("The file will disclose:")
        for line in file_disclosure(prompt):
            out.print(f"  {printable(line)}")
    if job.out.exists() and not job.overwrite:
        raise BadInput(
            "a file of this name appeared while training", where=job.out,
            do=f"move it away, then sordino train --resume {quote(str(job.together or job.folder))}; or add --overwrite to that",
        )  # fmt: skip
    for line in write(prompt, job.out, to="kobold", force=True):
        warn(line)
    out.print(f"Written: {job.out.resolve()} ({prompt.n_tokens} virtual tokens)")
    nearest = nearest_words(base, prompt)
    write_run_report(job.folder, prepared, prompt, pairs, measured, judging, nearest)
    out.print(f"Report:  {job.folder.resolve() / HTML}")
    if not brief:
        out.print(f"Nearest words: {' '.join(words[0][0].strip() or '_' for words in nearest)}")
    return prompt


def _sample_pairs(prepared: Prepared, draft: SoftPrompt) -> list[dict[str, str]]:
    """None of them, with a warning, where they cannot be had: the soft prompt is worth keeping all the same."""
    config = prepared.config
    try:
        return sample_pairs(prepared, draft, [config.sample_text], seed=config.seed, tokens=config.sample_tokens)
    except SordinoError as error:
        warn(f"there are no samples: {error.message}")
        return []


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
