"""One base model's share of a sweep: its runs trained together, the worse ones given up early, the finished ones measured.

Everything is in the model's folder: one folder per run, the checkpoint of all, and what they began with, so that a sweep that was
stopped or killed goes on exactly.

Successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943): the worse half ends at 1/8, 1/4 and 1/2 of the steps. The runs
take their steps together, so at a rung all that are left have been measured at the same step, and the rule is the paper's own.
Optuna's pruner of this name is the asynchronous one: it judges a trial by those that came before it, and lets the first ones
through. The cost is about 1/8 + 1/2 x 1/8 + 1/4 x 1/4 + 1/8 x 1/2 = 31 % of all runs to their end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sordino.errors import DataError
from sordino.evaluation.conditions import no_prompt, soft_prompt
from sordino.evaluation.scoring import nll_of_windows, target_bytes, windows_of
from sordino.models.base_model import BaseModel
from sordino.prompts.prompt import Prompt
from sordino.prompts.soft_prompt import Metadata
from sordino.storage import write_bytes
from sordino.texts.pieces import Piece
from sordino.training.checkpoint import FILE as CHECKPOINT
from sordino.training.checkpoint import reading_stored
from sordino.training.config import TextPaths
from sordino.training.events import Finished, OnGroupEvent, Validation
from sordino.training.execute import ShouldStop, answered
from sordino.training.form import form_of
from sordino.training.gradient import group_pass_tokens
from sordino.training.loop import Prune, RunGroup, train_group
from sordino.training.report import read_events
from sordino.training.run import PreparedRun, prepare, with_settings
from sordino.training.strategy import SINGLE_PROCESS, Strategy, agreed_number
from sordino.training.sweep.grid import EVALUATIONS, Choice, Spec
from sordino.training.sweep.results import Measured, ModelOutcome, Outcome

BEGAN = "began.json"


@dataclass(frozen=True)
class _Began:
    """What a model's runs began with. starts: where each first matrix came from; None where they are to begin."""

    pass_tokens: int = 0
    starts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Member:
    """One run of the sweep: its name (also its folder's), what it tries, and all it needs."""

    name: str
    choice: Choice
    prepared: PreparedRun


def members_of(
    base: BaseModel,
    spec: Spec,
    model: str,
    texts: TextPaths,
    folder: Path | None,
    strategy: Strategy = SINGLE_PROCESS,
) -> list[Member]:
    """The runs of one base model, all on the same three sets.

    folder: where they go on from, if there is something to go on from; None to estimate costs, without a first matrix.
    Raises DataError, ConfigError, OutOfMemory, TrainingError.
    """
    choices = [choice for choice in spec.choices() if choice.model == model]
    began = _began(folder) if folder is not None else _Began(starts=("",) * len(choices))
    room = spec.rest.pass_tokens
    if spec.fill_passes:
        room = began.pass_tokens or int(agreed_number(strategy, group_pass_tokens(base, room)))
    shared: PreparedRun | None = None
    # Runs that differ in learning rate or method alone begin with the same matrix, which is dear to choose.
    starts: dict[tuple[object, ...], PreparedRun] = {}
    made: list[Member] = []
    for number, choice in enumerate(choices):
        config = replace(spec.config(choice), pass_tokens=room)
        started = began.starts[number] if began.starts else None
        key = (choice.kind, choice.tokens, choice.init, choice.seed, started)
        if key in starts:
            prepared = replace(starts[key], config=replace(config, sample_text=starts[key].config.sample_text))
        elif shared is not None:
            prepared = with_settings(shared, config, started=started)
        else:
            prepared = prepare(base, config, texts, started=started, split_seed=spec.split_seed)
        shared, starts[key] = prepared, prepared
        made.append(Member(f"{number + 1:03}", choice, prepared))
    if not made[0].prepared.data.validation:
        raise DataError("there is no validation set to compare by", where="DATA", do="give more text")
    return made


def answering(members: Sequence[Member], folder: Path, on_event: OnGroupEvent, strategy: Strategy) -> list[Member]:
    """What `members_of` made, with the model's own answers. Raises as `answered`."""
    resume = _began(folder).starts is not None
    runs = [member.prepared for member in members]
    runs = answered(runs, folder, resume=resume, on_event=partial(on_event, ""), strategy=strategy)
    return [replace(member, prepared=run) for member, run in zip(members, runs, strict=True)]


def train_members(
    base: BaseModel,
    spec: Spec,
    members: Sequence[Member],
    folder: Path,
    strategy: Strategy,
    on_event: OnGroupEvent,
    should_stop: ShouldStop,
) -> dict[str, Finished] | None:
    """Train what `members_of` made, from the beginning or from the checkpoint in `folder`. None if they were asked to stop."""
    resume = _began(folder).starts is not None
    if strategy.saves and not resume:
        (folder / CHECKPOINT).unlink(missing_ok=True)
        for member in members:
            (folder / member.name).mkdir(parents=True, exist_ok=True)
        began = {
            "pass_tokens": members[0].prepared.config.pass_tokens,
            "starts": [member.prepared.start.how for member in members],
        }
        write_bytes(folder / BEGAN, json.dumps(began).encode())
    runs = [member.prepared.run(folder / member.name, member.name) for member in members]
    prune: Prune = (lambda step, losses: ()) if spec.full else halving(spec.rest.steps)
    finished = {}
    group = RunGroup(runs, folder, prune)
    for name, event in train_group(base, group, resume=resume, should_stop=should_stop, strategy=strategy):
        if isinstance(event, Finished):
            finished[name] = event
        on_event(name, event)
    return None if any(one.why == "stopped" for one in finished.values()) else finished


def rungs(steps: int) -> tuple[int, ...]:
    """The steps at which the worse half ends."""
    first = steps // EVALUATIONS
    return (first, 2 * first, 4 * first)


def halving(steps: int) -> Prune:
    """The rule for `train_group`, of runs that are `steps` long."""
    at = rungs(steps)

    def prune(step: int, losses: Mapping[str, float]) -> Collection[str]:
        return worse_half(losses) if step in at else ()

    return prune


def share_of(runs: int) -> float:
    """What halving costs, as a share of all these runs to their end; checking on them is not counted."""
    cost, left = 0.0, runs
    for length in (1 / 8, 1 / 8, 1 / 4, 1 / 2):
        cost += left * length
        left = math.ceil(left / 2)
    return cost / runs


def worse_half(losses: Mapping[str, float]) -> list[str]:
    """The names of the worse half, rounded down. A loss that is not a number is the worst."""
    order = sorted(losses, key=lambda name: (not math.isfinite(losses[name]), losses[name], name))
    return order[math.ceil(len(order) / 2) :]


def measure_members(
    base: BaseModel, spec: Spec, model: str, members: Sequence[Member], finished: Mapping[str, Finished], folder: Path
) -> ModelOutcome:
    """What came of the runs: those that went to their end are measured on the held-out texts. Raises DataError, OutOfMemory."""
    done = {name: one for name, one in finished.items() if one.why == "steps"}
    prompts = {
        member.name: form_of(base, member.prepared.config).prompt(done[member.name].matrix_PD, Metadata())
        for member in members
        if member.name in done
    }
    splits, pass_tokens = members[0].prepared.splits, members[0].prepared.config.pass_tokens
    none, heldout = _losses(base, prompts, splits.heldout, spec, pass_tokens)
    outcomes = tuple(
        Outcome(
            member.name,
            member.choice,
            finished[member.name].why,
            finished[member.name].progress.step,
            finished[member.name].progress.step * min(spec.rest.batch, len(member.prepared.data.train)),
            finished[member.name].progress.best_loss,
            tuple((e.step, e.loss) for e in read_events(folder / member.name) if isinstance(e, Validation)),
            heldout.get(member.name),
        )
        for member in members
    )
    seconds = max(one.progress.seconds for one in finished.values())
    outcome = ModelOutcome(model, base.network.num_parameters(), none, outcomes, float("inf"), seconds)
    if outcome.best is None:
        return outcome
    own = {outcome.best.name: prompts[outcome.best.name]}
    _, validation = _losses(base, own, splits.validation, spec, pass_tokens)
    return replace(outcome, validation_bits=validation[outcome.best.name].bits_per_byte)


def _losses(
    base: BaseModel, prompts: Mapping[str, Prompt], pieces: Sequence[Piece], spec: Spec, pass_tokens: int
) -> tuple[Measured, dict[str, Measured]]:
    """The same tokens after no prompt, and after each."""
    conditions = [no_prompt(base), *(soft_prompt(base, name, prompt) for name, prompt in prompts.items())]
    first = all(condition.length > 0 for condition in conditions)
    windows = windows_of(base, pieces, row_tokens=spec.rest.row_tokens, limit=spec.heldout_tokens, first=first)
    nats_C = nll_of_windows(base, conditions, windows, pass_tokens=pass_tokens).sum(axis=0)
    tokens, size = sum(sum(window.labelled) for window in windows), max(target_bytes(base, windows), 1)
    none, *rest = (Measured(float(nats) / tokens, float(nats) / math.log(2) / size) for nats in nats_C)
    return none, dict(zip(prompts, rest, strict=True))


def _began(folder: Path) -> _Began:
    """Runs that have no checkpoint yet begin anew."""
    if not (folder / BEGAN).is_file() or not (folder / CHECKPOINT).is_file():
        return _Began()
    with reading_stored("what the runs began with cannot be read", folder / BEGAN):
        stored = json.loads((folder / BEGAN).read_bytes())
        return _Began(int(stored["pass_tokens"]), tuple(str(how) for how in stored["starts"]))
