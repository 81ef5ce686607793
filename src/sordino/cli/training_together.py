"""What `sordino train --voice ...` does: the texts of each voice, one base model, one loop, a file and a report a voice."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import click
import numpy as np

from sordino.cli.console import err, one_line, out, printable, table, warn
from sordino.cli.loading import loaded_model
from sordino.cli.training_result import after_training
from sordino.cli.training_run import (
    alone_in,
    clock,
    deterministic,
    progress_bar,
    read_prompt,
    show,
    stop_on_interrupt,
    tell_data,
    told_texts,
    write_result,
)
from sordino.cli.training_voices import FOLDER, GROUP
from sordino.errors import BadInput, ConfigError, DataError, TrainingError
from sordino.formats import read
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.storage import write_bytes
from sordino.training.checkpoint import FILE as CHECKPOINT
from sordino.training.checkpoint import is_unfinished, read_group
from sordino.training.events import Finished, Lost
from sordino.training.finder import find_learning_rate
from sordino.training.gradient import group_pass_tokens
from sordino.training.job import Job, is_unwritten, job_from, job_of, store
from sordino.training.loop import Run, RunGroup, train_group
from sordino.training.report import HTML
from sordino.training.run import Prepared, TextPaths, estimate_group, prepare


@dataclass(frozen=True)
class Group:
    """Several jobs on one base model by the voices' names, and the folder that they go on from."""

    jobs: Mapping[str, Job]
    folder: Path

    @property
    def first(self) -> Job:
        return next(iter(self.jobs.values()))


def run(options: Mapping[str, Any]) -> None:
    """The command. Raises SordinoError."""
    resume: Path | None = options["resume"]
    if options["find_lr"] and options["lr"] is not None:
        raise ConfigError("both --lr and --find-lr were given", do="give one of them")
    group = stored_group(resume, options) if resume is not None else group_of(options)
    base = loaded_model(group.first.model, group.first.dtype, group.first.device, ask=not options["as_json"])
    if resume is None and options["pass_tokens"] is None:
        room = group_pass_tokens(base, group.first.config.pass_tokens)
        group = _each(group, lambda job: replace(job, config=replace(job.config, pass_tokens=room)))
    if options["dry_run"]:
        _look(group, base, options)
        return
    prepared = _read(group, base)
    with ExitStack() as locks:
        for folder in (group.folder, *(job.folder for job in group.jobs.values())):
            locks.enter_context(alone_in(folder))
        if resume is None:
            group = _calibrated(group, prepared, options)
        prepared = {name: replace(one, config=group.jobs[name].config) for name, one in prepared.items()}
        _follow(group, prepared, resume=resume is not None)


def group_of(options: Mapping[str, Any]) -> Group:
    """The voices that the command line asks for, checked as far as it can be without reading a text. Raises BadInput."""
    folder: Path = options["out_dir"]
    together = folder / FOLDER
    unwritten = (together / CHECKPOINT).exists() and any(
        is_unwritten(folder / f"{name}.run", folder / f"{name}.zip") for name in options["voices"]
    )
    if not options["overwrite"] and (unwritten or is_unfinished(together)):
        raise BadInput(
            "voices that are trained to this folder were stopped and can go on",
            where=together,
            do=f"sordino train --resume {quote(str(together))}; or choose another --out-dir; or begin again with --overwrite",
        )
    jobs = {
        name: replace(
            job_of({**options, "data": (path,), "out": folder / f"{name}.zip", "name": name}), together=together
        )
        for name, path in options["voices"].items()
    }
    return Group(jobs, together)


def stored_group(folder: Path, options: Mapping[str, Any]) -> Group:
    """The voices that are to go on, in the folder beside their own. Raises BadInput, TrainingError."""
    if options["data"]:
        raise BadInput("a run that is resumed reads the texts it began with", where="DATA", do="leave DATA out")
    names = list(read_group(folder))
    try:
        stored = json.loads((folder / GROUP).read_bytes())["voices"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainingError("the voices' names cannot be read", where=folder / GROUP, got=error) from None
    if stored != names:
        raise TrainingError("the checkpoint is of other voices", where=folder, expected=stored, got=", ".join(names))
    beside = folder.resolve().parent
    jobs = {name: job_from(beside / f"{name}.run", overwrite=options["overwrite"]) for name in names}
    return Group({name: replace(job, together=folder) for name, job in jobs.items()}, folder)


def _each(group: Group, change: Any) -> Group:
    return replace(group, jobs={name: change(job) for name, job in group.jobs.items()})


# Before training ------------------------------------------------------------------------------------------------------


def _prepared(name: str, job: Job, base: BaseModel) -> Prepared:
    try:
        return prepare(base, job.config, TextPaths(job.data, (), job.speaker), read_prompt, started=job.started)
    except DataError as error:
        raise DataError(
            error.what, where=f"--voice {name}", expected=error.expected, got=error.got, do=error.do
        ) from None


def _read(group: Group, base: BaseModel) -> dict[str, Prepared]:
    prepared = {}
    for name, job in group.jobs.items():
        prepared[name] = _prepared(name, job, base)
        out.print(f"{one_line(name)}:", style="bold")
        tell_data(prepared[name])
    return prepared


def _look(group: Group, base: BaseModel, options: Mapping[str, Any]) -> None:
    """What the texts are and what the runs would cost; as JSON two objects, a line each, as soon as each is known."""
    if not options["as_json"]:
        _calibrated(group, _read(group, base), {**options, "find_lr": False})
        return
    prepared = {name: _prepared(name, job, base) for name, job in group.jobs.items()}
    click.echo(json.dumps({"texts": {name: told_texts(one) for name, one in prepared.items()}}))
    sys.stdout.flush()
    cost = estimate_group(list(prepared.values()), minutes=options["minutes"])
    click.echo(json.dumps({"cost": asdict(cost)}))


def _calibrated(group: Group, prepared: Mapping[str, Prepared], options: Mapping[str, Any]) -> Group:
    with err.status("Measuring this machine ..."):
        cost = estimate_group(list(prepared.values()), minutes=options["minutes"])
    out.print(
        f"{len(prepared)} voices together, {cost.steps} step{'s' if cost.steps > 1 else ''} each, of about "
        f"{cost.step_seconds:.1f} s for all: {clock(cost.seconds)} of training, then the measuring; one base model; "
        f"memory about {cost.memory_bytes / 2**30:.1f} GiB, {cost.free_bytes / 2**30:.1f} GiB more are free."
    )
    jobs = {}
    for name, job in group.jobs.items():
        config = replace(prepared[name].config, steps=cost.steps)
        if options["find_lr"]:
            with err.status(f"Looking for a learning rate for {one_line(name)} ..."):
                rates = find_learning_rate(replace(prepared[name], config=config))
            config = replace(config, lr=rates.best)
            out.print(f"{one_line(name)}: learning rate {rates.best:g}")
        jobs[name] = replace(job, config=config)
    return replace(group, jobs=jobs)


# Training -------------------------------------------------------------------------------------------------------------


def _follow(group: Group, prepared: Mapping[str, Prepared], *, resume: bool) -> None:
    if not resume:
        # What an earlier run left must not be taken for this one's, should this one be killed before its first checkpoint.
        for folder in (group.folder, *(job.folder for job in group.jobs.values())):
            (folder / CHECKPOINT).unlink(missing_ok=True)
        for name, job in group.jobs.items():
            store(job, prepared[name].start.how)
        write_bytes(group.folder / GROUP, json.dumps({"voices": list(group.jobs)}).encode())
    for name, one in prepared.items():
        out.print(f"{one_line(name)} starts from {printable(one.start.how)}.")
    out.print("Ctrl-C saves all and stops.")
    finished = _watch(group, prepared, resume=resume)
    if any(one.why == "stopped" for one in finished.values()):
        done = max(one.progress.step for one in finished.values())
        say = err if out.reader_left else out
        say.print(f"Stopped after step {done}; all voices are saved.")
        say.print(f"Go on with: sordino train --resume {quote(str(group.folder))}")
        return
    prompts = {name: _result(group, name, prepared[name], finished[name]) for name in group.jobs}
    out.print()
    out.print(_table(prompts, finished))
    for name, end in finished.items():
        if end.progress.best_step == 0:
            out.print(
                f"{one_line(name)}: validation was best before the first step, so its file is what it started from."
            )
    out.print(f"Keep one: sordino install {quote(str(group.first.out))}")


def _watch(group: Group, prepared: Mapping[str, Prepared], *, resume: bool) -> dict[str, Finished]:
    base = next(iter(prepared.values())).base
    runs = [
        Run(name, prepared[name].data, job.config, job.folder, prepared[name].start.matrix_PD)
        for name, job in group.jobs.items()
    ]
    finished = {}
    with deterministic(base), stop_on_interrupt() as should_stop, progress_bar(named=True) as bar:
        tasks = {
            name: bar.add_task(one_line(name), total=job.config.steps, loss="", val="", speed="")
            for name, job in group.jobs.items()
        }
        running = RunGroup(runs, group.folder)
        for name, event in train_group(base, running, resume=resume, should_stop=should_stop):
            if isinstance(event, Finished):
                finished[name] = event
                if event.why == "early":
                    best = event.progress.best_step
                    bar.console.print(f"{one_line(name)}: stopped early, the validation loss was best at step {best}")
            elif isinstance(event, Lost):
                warn(
                    f"{name} diverged at step {event.step}; its file will hold the best matrix before that: lower --lr"
                )
            else:
                show(bar, tasks[name], group.jobs[name].config, event, named=f"{one_line(name)}: ")
    return finished


def _result(group: Group, name: str, prepared: Prepared, finished: Finished) -> SoftPrompt:
    """The voice's soft prompt, written; or as it is, where an earlier sitting has written it."""
    job = group.jobs[name]
    if job.out.is_file() and not job.overwrite:
        written = read(job.out)
        if np.array_equal(written.matrix, finished.matrix_PD.numpy()):
            if (job.folder / HTML).is_file():
                return written
            # It is this run's own: the sitting ended between the file and its report.
            job = replace(job, overwrite=True)
    return write_result(job, prepared, finished, after_training(job.config), brief=True)


def _table(prompts: Mapping[str, SoftPrompt], finished: Mapping[str, Finished]) -> Any:
    """Held-out losses are nats a token, of each voice's own texts."""
    shown = table("voice", "#steps", "#validation", "#held-out: soft prompt", "#no prompt", "file")
    for name, prompt in prompts.items():
        nll = prompt.metadata.heldout.get("nll", {})
        best = finished[name].progress.best_loss
        shown.add_row(
            one_line(name),
            str(finished[name].progress.step),
            f"{best:.3f}" if np.isfinite(best) else "",
            f"{nll['soft_prompt']:.3f}" if "soft_prompt" in nll else "",
            f"{nll['no_prompt']:.3f}" if "no_prompt" in nll else "",
            f"{one_line(name)}.zip",
        )
    return shown
