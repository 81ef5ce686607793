"""A sweep from its settings to its results: one base model after another, all its runs together. Prints nothing.

Everything is in the sweep's folder: sweep.json (what was asked for), a folder a model with its runs and its best soft prompt,
and at the end results.json, winner.zip (of a KV prompt winner.kv.zip) and a plot for each factor that was varied.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from sordino.errors import BadInput
from sordino.library.names import safe_name
from sordino.library.outputs import check_folder
from sordino.models.base_model import BaseModel
from sordino.models.files import absolute_name, resolve
from sordino.prompts.soft_prompt import Metadata
from sordino.storage import write_bytes
from sordino.training.checkpoint import FILE as CHECKPOINT
from sordino.training.checkpoint import reading_stored
from sordino.training.config import RATES, Loading, TextPaths
from sordino.training.events import Finished, RunEvent, Started, Working
from sordino.training.execute import ShouldStop, alone_in, deterministic, texts_read
from sordino.training.job import Job, check_start, ending_of
from sordino.training.reading import stored_texts, texts_to_store
from sordino.training.result import write_result
from sordino.training.run import estimate
from sordino.training.strategy import SINGLE_PROCESS, Strategy, any_process
from sordino.training.sweep.grid import Spec
from sordino.training.sweep.pictures import pictures
from sordino.training.sweep.results import Claim, ModelOutcome, Outcome, claims, cost, winner
from sordino.training.sweep.running import BEGAN, Member, answering, measure_members, members_of, train_members

SETTINGS, RESULTS, WINNER, BEST = "sweep.json", "results.json", "winner", "best"


@dataclass(frozen=True)
class Sweep:
    """The settings of a sweep, as its folder holds them: --resume needs nothing else."""

    spec: Spec
    texts: TextPaths
    folder: Path
    loading: Loading = field(default_factory=Loading)

    def folder_of(self, model: str) -> Path:
        """The folder of one model. It is the same for a resumed sweep, which knows the model by its absolute path."""
        number = self.spec.model.index(model) + 1
        return self.folder / f"{number}-{safe_name(Path(absolute_name(model)).name)}"


@dataclass(frozen=True)
class SweepResult:
    """best: the winner and its model, None if no run reached its end. rows: how many were trained on. rows_in_full: how many it
    would have been if every run had gone to its end.
    """

    models: tuple[ModelOutcome, ...]
    best: tuple[ModelOutcome, Outcome] | None
    claims: tuple[Claim, ...]
    rows: int
    rows_in_full: int

    @property
    def file(self) -> str:
        """The name of the winner's file, in the sweep's folder; "" where there is none."""
        return f"{WINNER}{ending_of(self.best[1].choice.kind)}" if self.best else ""

    def to_json(self) -> dict[str, Any]:
        return {
            "models": [outcome.to_json() for outcome in self.models],
            "winner": {"model": self.best[0].model, "run": self.best[1].name, **asdict(self.best[1].choice)}
            if self.best
            else None,
            "claims": [asdict(claim) for claim in self.claims],
            "rows_trained": self.rows,
            "rows_of_the_full_grid": self.rows_in_full,
        }


@dataclass(frozen=True)
class ModelStarted:
    """The runs of one base model begin; `runs` is 0 where --random took no combination with it."""

    model: str
    runs: int


# Called with the name of a run, or with "" for what concerns all runs of a model.
OnSweepEvent = Callable[[str, RunEvent | ModelStarted], None]
LoadModel = Callable[[str], BaseModel]


def check_sweep(sweep: Sweep, *, overwrite: bool) -> None:
    """What can be checked of a sweep that begins without reading a text. Raises BadInput, ModelError."""
    folder = sweep.folder
    check_folder(folder)
    if any(os.path.realpath(texts) == os.path.realpath(folder) for texts in (*sweep.texts.data, *sweep.texts.heldout)):
        raise BadInput(
            "the texts lie here", where=folder, do="give --out-dir a folder of its own, in this one or elsewhere"
        )
    # Settings alone are left by a sweep that failed before its first step: nothing is lost with them.
    if (folder / SETTINGS).exists() and any(folder.glob(f"*/{BEGAN}")) and not overwrite:
        raise BadInput(
            "there is a sweep here",
            where=folder,
            do=f"sordino sweep --resume {quote(str(folder))}; or choose another --out-dir; or begin again with --overwrite",
        )
    for taken in (folder / RESULTS, *_files(folder, WINNER)):
        if taken.exists() and not overwrite:
            raise BadInput("there is a file of this name", where=taken, do="choose another --out-dir, or --overwrite")
    # The second model's name would else be looked up after the first one's runs.
    for model in sweep.spec.model:
        resolve(model)
        for init in sweep.spec.init:
            check_start(init, model)


def _files(folder: Path, name: str) -> list[Path]:
    """A soft prompt's file of this name, of either kind."""
    return [folder / f"{name}{ending_of(kind)}" for kind in RATES]


def store_sweep(sweep: Sweep) -> None:
    """Write the sweep into its folder, with absolute paths, and remove what an earlier sweep left there."""
    # Also of models that are not in this sweep.
    others = {path.parent for path in sweep.folder.glob(f"*/{BEGAN}")}
    for folder in others | {sweep.folder_of(model) for model in sweep.spec.model}:
        for left in (*(folder / name for name in (BEGAN, CHECKPOINT, RESULTS)), *_files(folder, BEST)):
            left.unlink(missing_ok=True)
    for path in (
        sweep.folder / RESULTS, *_files(sweep.folder, WINNER), *sweep.folder.glob("heldout-by-*.png")
    ):  # fmt: skip
        path.unlink(missing_ok=True)
    models = [absolute_name(model) for model in sweep.spec.model]
    stored = {
        "spec": {**sweep.spec.to_json(), "model": models},
        **texts_to_store(sweep.texts),
        **asdict(sweep.loading),
    }
    write_bytes(sweep.folder / SETTINGS, json.dumps(stored, indent=1).encode())


def stored_sweep(folder: Path) -> Sweep:
    """The sweep that is to go on. Raises CheckpointError."""
    path = folder / SETTINGS
    with reading_stored("there is no sweep to resume here", path, do="start again without --resume"):
        stored = json.loads(path.read_bytes())
        spec, texts = Spec.from_json(stored["spec"]), stored_texts(stored)
        return Sweep(spec, texts, folder, Loading.of(stored))


def execute_sweep(
    sweep: Sweep,
    load: LoadModel,
    *,
    resume: bool = False,
    on_event: OnSweepEvent = lambda name, event: None,
    should_stop: ShouldStop = lambda: False,
    strategy: Strategy = SINGLE_PROCESS,
) -> SweepResult | None:
    """Train, measure, compare, write. None if the sweep was asked to stop, and its folder then holds what it needs to go on; None
    too in a process that does not save.

    load: from a model's name to the base model; one is held at a time. Raises SordinoError.
    """
    with alone_in(sweep.folder) if strategy.saves else nullcontext():
        if strategy.saves and not resume:
            store_sweep(sweep)
        # No process reads what an earlier sweep left.
        any_process(strategy, False)
        outcomes = []
        for model in sweep.spec.model:
            if model not in sweep.spec.models():
                on_event("", ModelStarted(model, 0))
        for model in sweep.spec.models():
            outcome = _finished_earlier(sweep.folder_of(model))
            if any_process(strategy, outcome is None):
                outcome = _run_model(sweep, model, load, on_event, should_stop, strategy)
            if any_process(strategy, strategy.saves and outcome is None):
                return None
            outcomes += [outcome] if outcome else []
        return _compare(sweep, outcomes) if strategy.saves else None


def dry_run_sweep(sweep: Sweep, load: LoadModel, on_event: OnSweepEvent, strategy: Strategy = SINGLE_PROCESS) -> None:
    """For each model what the texts are and what its runs would cost, as events. Raises SordinoError."""
    for model in sweep.spec.models():
        base = load(model)
        _estimate(members_of(base, sweep.spec, model, sweep.texts, None, strategy), model, on_event, strategy)


def _estimate(members: Sequence[Member], model: str, on_event: OnSweepEvent, strategy: Strategy) -> None:
    on_event("", ModelStarted(model, len(members)))
    on_event("", texts_read(members[0].prepared))
    on_event("", Working("Measuring this machine"))
    # Only the best run becomes a file, and only that file is measured.
    first, *others = (member.prepared for member in members)
    unmeasured = [replace(one, config=replace(one.config, measure="none")) for one in others]
    on_event("", estimate([first, *unmeasured], strategy=strategy))


def _finished_earlier(folder: Path) -> ModelOutcome | None:
    path = folder / RESULTS
    if not path.is_file():
        return None
    with reading_stored("the model's results cannot be read", path, do="remove the file"):
        return ModelOutcome.from_json(json.loads(path.read_bytes()))


def _run_model(
    sweep: Sweep,
    model: str,
    load: LoadModel,
    on_event: OnSweepEvent,
    should_stop: ShouldStop,
    strategy: Strategy,
) -> ModelOutcome | None:
    base, folder = load(model), sweep.folder_of(model)
    on_event("", Working("Reading the texts and choosing first matrices"))
    members = members_of(base, sweep.spec, model, sweep.texts, folder, strategy)
    _estimate(members, model, on_event, strategy)
    folder.mkdir(parents=True, exist_ok=True)
    members = answering(members, folder, on_event, strategy)
    on_event("", Started("", sweep.spec.rest.steps))
    with deterministic(base):
        finished = train_members(base, sweep.spec, members, folder, strategy, on_event, should_stop)
    if finished is None or not strategy.saves:
        return None
    on_event("", Working("Measuring on the held-out texts"))
    outcome = measure_members(base, sweep.spec, model, members, finished, folder)
    if outcome.best is not None:
        _write_best(sweep, model, members, finished, outcome.best, on_event)
    write_bytes(folder / RESULTS, json.dumps(outcome.to_json(), indent=1).encode())
    return outcome


def _write_best(
    sweep: Sweep,
    model: str,
    members: Sequence[Member],
    finished: Mapping[str, Finished],
    best: Outcome,
    on_event: OnSweepEvent,
) -> None:
    """The model's best run as a soft prompt file, measured and reported like any other."""
    member, folder = next(member for member in members if member.name == best.name), sweep.folder_of(model)
    config, metadata = member.prepared.config, Metadata(name=safe_name(sweep.folder.resolve().name))
    job = Job(
        sweep.texts, folder / f"{BEST}{ending_of(config.kind)}", model, metadata, config, sweep.loading,
        overwrite=True, run=folder / member.name,
    )  # fmt: skip
    done = finished[member.name]
    judging = member.prepared.judging(done.progress.step)
    write_result(job, member.prepared, done, judging, partial(on_event, member.name))


def _compare(sweep: Sweep, outcomes: Sequence[ModelOutcome]) -> SweepResult:
    spec = sweep.spec
    rows, rows_in_full = cost(outcomes, spec.rest.steps, spec.rest.batch)
    result = SweepResult(tuple(outcomes), winner(outcomes), tuple(claims(outcomes)), rows, rows_in_full)
    for name, data in pictures(outcomes).items():
        write_bytes(sweep.folder / name, data)
    if result.best is not None:
        model, run = result.best
        best = sweep.folder_of(model.model) / f"{BEST}{ending_of(run.choice.kind)}"
        write_bytes(sweep.folder / result.file, best.read_bytes())
    stored = {"settings": spec.to_json(), **result.to_json()}
    write_bytes(sweep.folder / RESULTS, json.dumps(stored, indent=1).encode())
    return result
