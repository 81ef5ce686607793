"""What `sordino sweep` does, told as it happens: one base model after another, all its runs together, then what came of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sordino.cli.console import err, one_line, out, table, warn
from sordino.cli.loading import loaded_model
from sordino.cli.training_result import after_training
from sordino.cli.training_run import (
    alone_in,
    clock,
    deterministic,
    read_prompt,
    stop_on_interrupt,
    tell_data,
    write_result,
)
from sordino.errors import BadInput, TrainingError
from sordino.library.names import safe_name
from sordino.library.outputs import check_folder
from sordino.models.base_model import BaseModel
from sordino.models.files import absolute_name
from sordino.prompts.soft_prompt import Metadata
from sordino.storage import write_bytes
from sordino.training.checkpoint import FILE as CHECKPOINT
from sordino.training.config import TrainConfig
from sordino.training.events import Event, Finished, Lost, Step
from sordino.training.job import Job
from sordino.training.run import TextPaths, estimate_group
from sordino.training.sweep.claims import claims
from sordino.training.sweep.grid import FACTORS, Spec
from sordino.training.sweep.halving import share_of
from sordino.training.sweep.pictures import pictures
from sordino.training.sweep.results import Measured, ModelOutcome, Outcome, cost, winner
from sordino.training.sweep.running import BEGAN, Member, measure_members, members_of, train_members

SETTINGS, RESULTS, WINNER, BEST = "sweep.json", "results.json", "winner.zip", "best.zip"


@dataclass(frozen=True)
class Sweep:
    """A sweep as it was asked for: kept in its folder, so that --resume needs nothing else."""

    spec: Spec
    texts: TextPaths
    folder: Path
    device: str | None
    dtype: str | None

    def folder_of(self, model: str) -> Path:
        """A model's own, whatever its name is; the same for a sweep that goes on and knows the model by its whole path."""
        number = self.spec.model.index(model) + 1
        return self.folder / f"{number}-{safe_name(Path(absolute_name(model)).name)}"


def run(options: Mapping[str, Any]) -> None:
    """The command. Raises SordinoError."""
    resume: Path | None = options["resume"]
    asked = stored_sweep(resume) if resume is not None else sweep_of(options)
    if options["dry_run"]:
        _look(asked)
        return
    with alone_in(asked.folder):
        if resume is None:
            _store(asked)
        _follow(asked)


def sweep_of(options: Mapping[str, Any]) -> Sweep:
    """The sweep that the command line asks for, every combination checked. Raises BadInput."""
    folder: Path = options["out_dir"]
    check_folder(folder)
    if any(os.path.realpath(texts) == os.path.realpath(folder) for texts in (*options["data"], *options["heldout"])):
        raise BadInput(
            "the texts lie here", where=folder, do="give --out-dir a folder of its own, in this one or elsewhere"
        )
    # Settings alone are left by a sweep that failed before its first step: nothing is lost with them.
    if (folder / SETTINGS).exists() and any(folder.glob(f"*/{BEGAN}")) and not options["overwrite"]:
        raise BadInput(
            "there is a sweep here",
            where=folder,
            do=f"sordino sweep --resume {quote(str(folder))}; or choose another --out-dir; or begin again with --overwrite",
        )
    for taken in (folder / RESULTS, folder / WINNER):
        if taken.exists() and not options["overwrite"]:
            raise BadInput("there is a file of this name", where=taken, do="choose another --out-dir, or --overwrite")
    given = {key: options[key] for key in ("steps", "batch", "row_tokens", "pass_tokens") if options[key] is not None}
    spec = Spec(
        **{factor: options[factor] for factor in FACTORS},
        rest=TrainConfig(**given),
        random=options["random"] or 0,
        full=options["full"],
        split_seed=options["split_seed"],
    )
    texts = TextPaths(options["data"], options["heldout"], options["speaker"])
    return Sweep(spec, texts, folder, options["device"], options["dtype"])


def _store(asked: Sweep) -> None:
    """Write the sweep into its folder, with absolute paths; what an earlier one left there is not this one's."""
    # Of models that this sweep is not about, too.
    others = {path.parent for path in asked.folder.glob(f"*/{BEGAN}")}
    for folder in others | {asked.folder_of(model) for model in asked.spec.model}:
        for left in (BEGAN, CHECKPOINT, RESULTS, BEST):
            (folder / left).unlink(missing_ok=True)
    for path in (asked.folder / RESULTS, asked.folder / WINNER, *asked.folder.glob("heldout-by-*.png")):
        path.unlink(missing_ok=True)
    models = [absolute_name(model) for model in asked.spec.model]
    stored = {
        "spec": {**asked.spec.to_json(), "model": models},
        "data": [str(path.resolve()) for path in asked.texts.data],
        "heldout": [str(path.resolve()) for path in asked.texts.heldout],
        "speaker": asked.texts.speaker,
        "device": asked.device,
        "dtype": asked.dtype,
    }
    write_bytes(asked.folder / SETTINGS, json.dumps(stored, indent=1).encode())


def stored_sweep(folder: Path) -> Sweep:
    """The sweep that `_store` wrote. Raises TrainingError."""
    try:
        stored = json.loads((folder / SETTINGS).read_bytes())
        texts = TextPaths(tuple(map(Path, stored["data"])), tuple(map(Path, stored["heldout"])), stored["speaker"])
        return Sweep(Spec.from_json(stored["spec"]), texts, folder, stored["device"], stored["dtype"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TrainingError(
            "there is no sweep to resume here", where=folder / SETTINGS, got=error, do="start again without --resume"
        ) from None


# Running --------------------------------------------------------------------------------------------------------------


def _look(asked: Sweep) -> None:
    for model in asked.spec.models():
        base = loaded_model(model, asked.dtype, asked.device)
        members = members_of(base, asked.spec, model, asked.texts, read_prompt, None)
        tell_data(members[0].prepared)
        _tell_cost(asked, model, members)


def _follow(asked: Sweep) -> None:
    outcomes = []
    for model in asked.spec.model:
        if model not in asked.spec.models():
            out.print(f"{one_line(model)}: chance took no combination with it.")
    for model in asked.spec.models():
        folder = asked.folder_of(model)
        outcome = _finished_earlier(folder) or _run_model(asked, model, folder)
        if outcome is None:
            say = err if out.reader_left else out
            say.print("Stopped; all runs are saved.")
            say.print(f"Go on with: sordino sweep --resume {quote(str(asked.folder))}")
            return
        outcomes.append(outcome)
    _tell(asked, outcomes)


def _finished_earlier(folder: Path) -> ModelOutcome | None:
    path = folder / RESULTS
    if not path.is_file():
        return None
    try:
        return ModelOutcome.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TrainingError("the model's results cannot be read", where=path, got=error, do="remove the file") from None


def _run_model(asked: Sweep, model: str, folder: Path) -> ModelOutcome | None:
    base = loaded_model(model, asked.dtype, asked.device)
    with err.status("Reading the texts and choosing first matrices ..."):
        members = members_of(base, asked.spec, model, asked.texts, read_prompt, folder)
    out.print(f"{one_line(model)}: {len(members)} run{'s' * (len(members) > 1)}.", style="bold")
    tell_data(members[0].prepared)
    _tell_cost(asked, model, members)
    folder.mkdir(parents=True, exist_ok=True)
    finished = _watch(asked, base, members, folder)
    if finished is None:
        return None
    with err.status("Measuring on the held-out texts ..."):
        outcome = measure_members(base, asked.spec, model, members, finished, folder)
    if outcome.best is not None:
        _write_best(asked, model, members, finished, outcome.best, folder)
    write_bytes(folder / RESULTS, json.dumps(outcome.to_json(), indent=1).encode())
    return outcome


def _tell_cost(asked: Sweep, model: str, members: Sequence[Member]) -> None:
    with err.status("Measuring this machine ..."):
        found = estimate_group([member.prepared for member in members])
    full = f"{clock(found.seconds)} for all to their end"
    part = 1.0 if asked.spec.full else share_of(len(members))
    share = f"; halved at an eighth, a quarter and a half, about {clock(part * found.seconds)}" if part < 1 else ""
    out.print(
        f"{len(members)} run{'s' * (len(members) > 1)} of {asked.spec.rest.steps} steps on {one_line(model)}, "
        f"{found.step_seconds:.1f} s for a step of all: {full}{share}; memory about {found.memory_bytes / 2**30:.1f} GiB, "
        f"{found.free_bytes / 2**30:.1f} GiB more are free. Ctrl-C saves and stops."
    )


def _watch(asked: Sweep, base: BaseModel, members: Sequence[Member], folder: Path) -> dict[str, Finished] | None:
    total = asked.spec.rest.steps
    with deterministic(base), stop_on_interrupt() as should_stop, _bar() as bar:
        task = bar.add_task("", total=total, left=len(members))
        left = {member.name: member.choice for member in members}

        def tell(name: str, event: Event | Lost) -> None:
            if isinstance(event, Step):
                bar.update(task, completed=event.step, left=len(left))
            elif isinstance(event, Lost):
                warn(f"run {name} diverged at step {event.step}")
            elif isinstance(event, Finished) and event.why != "stopped":
                del left[name]
                ended = {"steps": "at its end", "pruned": "among the worse, ended"}.get(event.why, event.why)
                bar.console.print(
                    f"run {name}: {ended}, step {event.progress.step}/{total}, validation {event.progress.best_loss:.4f}"
                )

        return train_members(base, asked.spec, members, folder, tell=tell, should_stop=should_stop)


def _bar() -> Progress:
    return Progress(
        BarColumn(30),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}, runs left: {task.fields[left]}"),
        TimeRemainingColumn(),
        console=err,
    )


def _write_best(
    asked: Sweep,
    model: str,
    members: Sequence[Member],
    finished: Mapping[str, Finished],
    best: Outcome,
    folder: Path,
) -> None:
    """The model's best run as a soft prompt file, measured and reported like any other."""
    member = next(member for member in members if member.name == best.name)
    job = Job(
        asked.texts.data, asked.texts.heldout, folder / BEST, model, asked.device, asked.dtype, asked.texts.speaker,
        Metadata(name=safe_name(asked.folder.resolve().name)), member.prepared.config, overwrite=True, run=folder / member.name,
    )  # fmt: skip
    write_result(job, member.prepared, finished[member.name], after_training(member.prepared.config), brief=True)


# What came of it ------------------------------------------------------------------------------------------------------


def _tell(asked: Sweep, outcomes: Sequence[ModelOutcome]) -> None:
    spec = asked.spec
    found = winner(outcomes)
    said = claims(outcomes)
    rows, of = cost(outcomes, spec.rest.steps, spec.rest.batch)
    for name, data in pictures(outcomes).items():
        write_bytes(asked.folder / name, data)
    stored = {
        "settings": spec.to_json(),
        "models": [outcome.to_json() for outcome in outcomes],
        "winner": {"model": found[0].model, "run": found[1].name, **asdict(found[1].choice)} if found else None,
        "claims": [asdict(claim) for claim in said],
        "rows_trained": rows,
        "rows_of_the_full_grid": of,
    }
    if found is not None:
        write_bytes(asked.folder / WINNER, (asked.folder_of(found[0].model) / BEST).read_bytes())
    write_bytes(asked.folder / RESULTS, json.dumps(stored, indent=1).encode())
    out.print()
    out.print(_table(outcomes, found[1] if found else None))
    out.print(f"Trained on {rows:,} rows; all runs to their end would be {of:,} ({rows / of:.0%}).")
    out.print("What that says about arXiv 2104.08691:", style="bold")
    for claim in said:
        out.print(f"  {one_line(claim.claim)}: {claim.verdict}. {one_line(claim.evidence)}.")
    if found is None:
        warn("no run went to its end: there is no winner")
        return
    out.print(f"Winner:  {(asked.folder / WINNER).resolve()} ({_named(found[1])})")
    out.print(f"Results: {(asked.folder / RESULTS).resolve()}")


_COLUMNS = (
    *("model", "run", "#tokens", "#lr", "init", "method", "#seed", "#steps", "ended"),
    *("#validation", "#held-out", "#bits a byte"),
)


def _table(outcomes: Sequence[ModelOutcome], best: Outcome | None) -> Any:
    """Best first, by validation loss; those that went to their end before those that ended early."""
    shown = table(*_COLUMNS)
    for outcome in outcomes:
        for run in sorted(outcome.runs, key=lambda run: (not run.complete, -run.steps, run.validation)):
            choice, mark = run.choice, " *" if run is best else ""
            shown.add_row(
                one_line(outcome.model), run.name + mark, str(choice.tokens), f"{choice.lr:g}", one_line(choice.init),
                choice.method, str(choice.seed), str(run.steps), run.why,
                f"{run.validation:.4f}" if np.isfinite(run.validation) else "", *_figures(run.heldout),
            )  # fmt: skip
        shown.add_row(one_line(outcome.model), "none", "0", *[""] * 7, *_figures(outcome.none))
    return shown


def _figures(measured: Measured | None) -> tuple[str, str]:
    return (f"{measured.nll:.4f}", f"{measured.bits_per_byte:.4f}") if measured else ("", "")


def _named(run: Outcome) -> str:
    choice = run.choice
    return (
        f"{one_line(choice.model)}, {choice.tokens} tokens, lr {choice.lr:g}, init {one_line(choice.init)}, "
        f"{choice.method}, seed {choice.seed}"
    )
