"""The training loop: one place, top to bottom, for any number of runs on one base model. One run is a group of one.

Everything random (order of examples, initialisation) is a function of the seed and the step, and nothing else is kept between
steps but `RunState`; so a run that was killed and resumed gives the same bits as one that never stopped. The runs of a group
share forward passes (`gradient.py`) and nothing else: matrix, optimiser, schedule, validation and the end are each run's own.
All unfinished runs are at the same step; a finished one leaves its rows to the others. What is minimised is the group's `Loss`;
where the base model is, and in how many processes, is the `Strategy`'s business.

Shape key: P virtual tokens, D model width.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sordino.errors import Diverged
from sordino.models.base_model import BaseModel
from sordino.models.memory import memory_errors
from sordino.training.checkpoint import load_checkpoint, load_group, save_checkpoint, save_group
from sordino.training.contexts import neutral_ids
from sordino.training.events import Event, Lost, Step, Validation
from sordino.training.gradient import MEAN_NLL, Batch, Loss
from sordino.training.members import GroupMember, samples_of
from sordino.training.members import Run as Run
from sordino.training.members import TrainSet as TrainSet
from sordino.training.schedule import learning_rate
from sordino.training.state import set_rate, update_average
from sordino.training.strategy import SINGLE_PROCESS, Strategy, agreed, any_process, check_alike

CHECKPOINT_SECONDS = 15.0
LOWER = "lower --pass-tokens (same result, less memory), then --batch, --row-tokens or --tokens"


# From (step, validation loss of every run that was evaluated at it) to the names of the runs that end there. It is called again
# with the same losses after a crash, so it must be a pure function.
Prune = Callable[[int, Mapping[str, float]], Collection[str]]


@dataclass(frozen=True)
class RunGroup:
    """Runs that are trained together on one base model. Each is what it would be alone, but for rounding.

    folder: receives the checkpoint of all unfinished runs; the runs' own folders receive their metrics, and their checkpoints
    once they are finished. None for a single run, whose own folder receives its checkpoint from the beginning.
    """

    runs: Sequence[Run]
    folder: Path | None
    prune: Prune = lambda step, losses: ()
    loss: Loss = MEAN_NLL

    def __post_init__(self) -> None:
        if len({run.name for run in self.runs}) < len(self.runs) or (self.folder is None and len(self.runs) > 1):
            raise ValueError("several runs need a name each, and a folder")


def train(
    base: BaseModel,
    run: Run,
    *,
    loss: Loss = MEAN_NLL,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    strategy: Strategy = SINGLE_PROCESS,
) -> Iterator[Event]:
    """Train a soft prompt; the base model is not changed.

    Yields an event after every step, evaluation and sample, and `Finished` at the end. The run's folder receives the checkpoint
    and metrics.jsonl. `should_stop` is called after every step; a run that is stopped saves first.
    Raises DataError, Diverged, OutOfMemory, StorageError, TrainingError.
    """
    group = RunGroup([run], None, loss=loss)
    for _, event in train_group(base, group, resume=resume, should_stop=should_stop, strategy=strategy):
        if isinstance(event, Lost):
            raise Diverged(
                "the loss is not a number",
                where=f"step {event.step}",
                got=f"loss {event.loss}, gradient norm {event.grad_norm}",
                do="start again with a lower --lr, or with --dtype float32; --resume writes what was learned before",
            )
        yield event


def train_group(
    base: BaseModel,
    group: RunGroup,
    *,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    strategy: Strategy = SINGLE_PROCESS,
) -> Iterator[tuple[str, Event | Lost]]:
    """Train several soft prompts on one base model, which is not changed.

    Yields (the run's name, event) as `train` does, with `Finished` for each run when it is over: the others continue.
    Raises DataError, OutOfMemory, StorageError, TrainingError.
    """
    base = strategy.place(base)
    neutral = neutral_ids(base) if any(run.config.context for run in group.runs) else ()
    members = {
        run.name: GroupMember(base, replace(run, start_PD=agreed(strategy, run.start_PD)), neutral)
        for run in group.runs
    }
    snapshots = {name: member.snapshot for name, member in members.items()}
    check_alike(strategy, [(one.config, sorted(one.identity.items())) for one in snapshots.values()])

    def store(over: Collection[GroupMember]) -> None:
        for member in over if group.folder is not None else members.values():
            save_checkpoint(member.snapshot)
        if group.folder is not None:
            save_group(group.folder, snapshots)

    if resume and group.folder is not None:
        load_group(group.folder, snapshots)
    elif resume:
        for snapshot in snapshots.values():
            load_checkpoint(snapshot)
    elif strategy.saves:
        # Before anything else is written: a run that the disk stops can be resumed, whenever that is.
        store(())
    for member in members.values() if strategy.saves else ():
        member.open_metrics()
    # The same passes from the first step to the last, whichever runs are over.
    pass_tokens = min(run.config.pass_tokens for run in group.runs)
    saved_at = time.monotonic()

    def save(over: Collection[GroupMember]) -> None:
        for member in (*over, *going):
            member.flush()
        store(over)

    def validate(due: Sequence[GroupMember]) -> list[float]:
        if not due:
            return []
        parts = [member.judged() for member in due]
        with memory_errors("training", LOWER):
            losses = iter(group.loss.mean(base, [one for part in parts for one in part], pass_tokens, strategy))
        return [_mean(part, [next(losses) for _ in part]) for part in parts]

    for name, member in members.items():
        if member.progress.finished:
            yield name, member.finished()
    going = [member for member in members.values() if not member.progress.finished]
    step = going[0].progress.step if going else 0

    while going:
        began = time.monotonic()
        if step == 0:
            due = [member for member in going if member.validation]
            for member, first in zip(due, validate(due), strict=True):
                yield member.name, member.record(Validation(0, first, best=True))
                member.progress.best_loss = first
        for member in going:
            set_rate(member.state.optimiser, learning_rate(step, member.config))
            member.state.optimiser.zero_grad()
        batches = [member.batch(step) for member in going]
        with memory_errors("training", LOWER):
            losses = group.loss.backward(base, batches, pass_tokens, strategy)
        stepped: list[tuple[GroupMember, Step]] = []
        lost: dict[str, Lost] = {}
        for member, loss, batch in zip(going, losses, batches, strict=True):
            norm = float(torch.nn.utils.clip_grad_norm_(member.state.parameters.values(), member.config.clip))
            if not math.isfinite(loss) or not math.isfinite(norm):
                member.progress.finished = "diverged"
                lost[member.name] = Lost(step + 1, loss, norm)
                continue
            member.state.optimiser.step()
            member.progress.step += 1
            update_average(member.state, member.config)
            member.progress.tokens += batch.labelled
            rate = learning_rate(step, member.config)
            stepped.append((member, Step(step + 1, loss, rate, norm, batch.labelled, 0.0)))
        step += 1
        seconds = time.monotonic() - began
        for member, done in stepped:
            member.progress.seconds += seconds
            yield member.name, member.record(replace(done, seconds=seconds))

        alive = [member for member, _ in stepped]
        due = [member for member in alive if member.evaluates_at(step)]
        measured = dict(zip((m.name for m in due), validate(due), strict=True))
        for member in due:
            best = member.take(step, measured[member.name])
            yield member.name, member.record(Validation(step, measured[member.name], best))
        for member, sample in samples_of(base, [m for m in alive if step % m.config.sample_interval == 0], step):
            yield member.name, member.record(sample)
        pruned = group.prune(step, measured) if measured else ()
        for member in alive:
            if step == member.config.steps and not member.progress.finished:
                member.progress.finished = "steps"
            if member.name in pruned and not member.progress.finished:
                member.progress.finished = "pruned"

        over = [member for member in going if member.progress.finished]
        going = [member for member in going if not member.progress.finished]
        stop = any_process(strategy, should_stop())
        if strategy.saves and (stop or over or time.monotonic() - saved_at > CHECKPOINT_SECONDS):
            save(over)
            saved_at = time.monotonic()
        for member in over:
            if member.name in lost:
                yield member.name, lost[member.name]
            yield member.name, member.finished()
        if stop:
            for member in going:
                yield member.name, member.finished("stopped")
            return


def _mean(batches: Sequence[Batch], losses: Sequence[float]) -> float:
    """The mean loss over all labelled tokens."""
    counts = [batch.labelled for batch in batches]
    return losses[0] if len(losses) == 1 else sum(map(operator.mul, losses, counts)) / sum(counts)
