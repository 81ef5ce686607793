"""Several soft prompts trained together on one base model, each on its own texts: a job, a file and a report each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote

from sordino.errors import BadInput, CheckpointError, DataError
from sordino.formats import read_single
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata
from sordino.storage import write_bytes
from sordino.training.calibration import CALIBRATION, Calibration
from sordino.training.checkpoint import FILE as CHECKPOINT
from sordino.training.checkpoint import is_unfinished, read_group, reading_stored
from sordino.training.events import HTML, Finished, OnGroupEvent, Started
from sordino.training.execute import ShouldStop, alone_in, answered, begin, calibrated, deterministic, read_texts
from sordino.training.gradient import group_pass_tokens
from sordino.training.job import Job, check_job, ending_of, is_unwritten, job_from
from sordino.training.loop import RunGroup, train_group
from sordino.training.result import TrainResult, is_file_of, write_result
from sordino.training.run import PreparedRun, finish
from sordino.training.strategy import SINGLE_PROCESS, Strategy, agreed_number

# In the folder that the runs go on from: their names, in order.
GROUP = "group.json"
FOLDER = "together.run"


@dataclass(frozen=True)
class Group:
    """Jobs on one base model by name, and the folder that they go on from. fill_passes: let a pass hold as many positions as suit
    the device, whatever the jobs' settings say.
    """

    jobs: Mapping[str, Job]
    folder: Path
    fill_passes: bool = False

    @property
    def first(self) -> Job:
        return next(iter(self.jobs.values()))


def new_group(like: Job, named: Mapping[str, Path], out_dir: Path, *, fill_passes: bool = False) -> Group:
    """Runs to files in `out_dir`, each on its own texts, and otherwise as `like`. `check_group` tells whether they can begin."""
    together, ending = out_dir / FOLDER, ending_of(like.config.kind)
    jobs = {
        name: replace(
            like,
            texts=replace(like.texts, data=(path,)),
            out=out_dir / f"{name}{ending}",
            metadata=replace(like.metadata, name=name),
            together=together,
        )
        for name, path in named.items()
    }
    return Group(jobs, together, fill_passes)


def check_group(group: Group) -> None:
    """What can be checked of a group that begins without reading a text. Raises BadInput."""
    jobs = group.jobs.values()
    unwritten = (group.folder / CHECKPOINT).exists() and any(is_unwritten(job.folder, job.out) for job in jobs)
    if not group.first.overwrite and (unwritten or is_unfinished(group.folder)):
        raise BadInput(
            "soft prompts that are trained to this folder were stopped and can go on",
            where=group.folder,
            do=f"sordino train --resume {quote(str(group.folder))}; or choose another --out-dir; or begin again with --overwrite",
        )
    for job in jobs:
        check_job(job)


def is_group(folder: Path) -> bool:
    """Whether runs that were trained together go on from here."""
    return (folder / GROUP).is_file()


def stored_group(folder: Path, *, overwrite: bool = False) -> Group:
    """The group that is to go on; its runs' folders are beside this one. Raises CheckpointError."""
    names = list(read_group(folder))
    with reading_stored("the soft prompts' names cannot be read", folder / GROUP):
        stored = json.loads((folder / GROUP).read_bytes())["voices"]
    if stored != names:
        raise CheckpointError(
            "the checkpoint is of other soft prompts", where=folder, expected=stored, got=", ".join(names)
        )
    beside = folder.resolve().parent
    jobs = {name: job_from(beside / f"{name}.run", overwrite=overwrite) for name in names}
    return Group({name: replace(job, together=folder) for name, job in jobs.items()}, folder)


def execute_group(
    group: Group,
    base: BaseModel,
    calibration: Calibration = CALIBRATION,
    *,
    resume: bool = False,
    on_event: OnGroupEvent = lambda name, event: None,
    should_stop: ShouldStop = lambda: False,
    strategy: Strategy = SINGLE_PROCESS,
) -> dict[str, TrainResult] | None:
    """As `execute`, for all jobs in one loop; the results by name. Raises SordinoError."""
    prepared = _read(group, base, on_event, strategy)
    with ExitStack() as locks:
        folders = [group.folder, *(job.folder for job in group.jobs.values())]
        for folder in folders if strategy.saves else ():
            locks.enter_context(alone_in(folder))
        if resume:
            jobs = dict(group.jobs)
        else:
            jobs = calibrated(group.jobs, prepared, calibration, on_event, strategy)
            if strategy.saves:
                (group.folder / CHECKPOINT).unlink(missing_ok=True)
                for name, job in jobs.items():
                    begin(job, prepared[name])
                write_bytes(group.folder / GROUP, json.dumps({"voices": list(jobs)}).encode())
        runs = [replace(one, config=jobs[name].config) for name, one in prepared.items()]
        runs = answered(runs, group.folder, resume=resume, on_event=partial(on_event, ""), strategy=strategy)
        prepared = dict(zip(jobs, runs, strict=True))
        for name, one in prepared.items():
            on_event(name, Started(one.start.how, one.config.steps))
        members = [one.run(jobs[name].folder, name) for name, one in prepared.items()]
        finished = {}
        steps = train_group(
            base, RunGroup(members, group.folder), resume=resume, should_stop=should_stop, strategy=strategy
        )
        with deterministic(base):
            for name, event in steps:
                on_event(name, event)
                if isinstance(event, Finished):
                    finished[name] = event
        if any(one.why == "stopped" for one in finished.values()) or not strategy.saves:
            return None
        return {name: _result(name, job, prepared[name], finished[name], on_event) for name, job in jobs.items()}


def dry_run_group(
    group: Group,
    base: BaseModel,
    calibration: Calibration = CALIBRATION,
    *,
    on_event: OnGroupEvent,
    strategy: Strategy = SINGLE_PROCESS,
) -> None:
    """What the texts are and what training on them would cost, as the events `TextsRead` and `Cost`. Raises SordinoError."""
    prepared = _read(group, base, on_event, strategy)
    calibrated(group.jobs, prepared, replace(calibration, find_lr=False), on_event, strategy)


def _read(group: Group, base: BaseModel, on_event: OnGroupEvent, strategy: Strategy) -> dict[str, PreparedRun]:
    prepared = {}
    for name, job in group.jobs.items():
        if group.fill_passes:
            room = int(agreed_number(strategy, group_pass_tokens(base, job.config.pass_tokens)))
            job = replace(job, config=replace(job.config, pass_tokens=room))
        try:
            prepared[name] = read_texts(job, base, partial(on_event, name))
        except DataError as error:
            where = f"--prompt {name}"
            raise DataError(error.what, where=where, expected=error.expected, got=error.got, do=error.do) from None
    return prepared


def _result(name: str, job: Job, prepared: PreparedRun, finished: Finished, on_event: OnGroupEvent) -> TrainResult:
    """The soft prompt, written; or as it is, where it was written before the group was interrupted."""
    own = finish(prepared, finished, Metadata())
    if (job.folder / HTML).is_file() and not job.overwrite and is_file_of(job.out, own):
        return TrainResult(read_single(job.out), None, job.out, job.folder)
    return write_result(job, prepared, finished, prepared.judging(finished.progress.step), partial(on_event, name))
