"""The training loop: one place, top to bottom, for one run and for several on one base model.

Everything random (order of examples, initialisation) is a function of the seed and the step, and nothing else is kept between
steps but `RunState`; so a run that was killed and resumed gives the same bits as one that never stopped. Several runs go
through the model together (`together.py`) and share nothing else: matrix, optimiser, schedule, validation and the end are each
run's own. All that still go on are at the same step; one that is over leaves its rows to the others.

Shape key: P virtual tokens, D model width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sordino.engine.generate import Request, complete
from sordino.engine.sampling import Sampling
from sordino.errors import DataError, Diverged
from sordino.models.base_model import BaseModel
from sordino.models.memory import memory_named
from sordino.prompts.soft_prompt import Metadata, Placement, SoftPrompt
from sordino.texts.examples import Example
from sordino.training.checkpoint import (
    Kept,
    Progress,
    RunState,
    load_checkpoint,
    load_group,
    save_checkpoint,
    save_group,
)
from sordino.training.config import TrainConfig
from sordino.training.events import METRICS, Event, Finished, Lost, Metrics, Sample, Step, Validation
from sordino.training.gradient import loss_and_gradient, mean_nll
from sordino.training.pace import spread_within
from sordino.training.parameters import fold, new_parameters
from sordino.training.schedule import batch_at, hash_of, learning_rate
from sordino.training.together import Batch, losses_and_gradients, mean_nlls

CHECKPOINT_SECONDS = 15.0
LOWER = "lower --pass-tokens (same result, less memory), then --batch, --row-tokens or --tokens"


@dataclass(frozen=True)
class TrainSet:
    """The examples of a run and the hash of the texts they came from."""

    train: Sequence[Example]
    validation: Sequence[Example]
    data_hash: str


@dataclass(frozen=True)
class Run:
    """One run of several: its texts, settings, folder and first matrix. name: no other run's."""

    name: str
    data: TrainSet
    config: TrainConfig
    folder: Path
    start_PD: Tensor


# Of (step, validation loss of every run that was evaluated at it): the names of those that end here. Asked again for the same
# losses after a crash, so it must answer them alike.
Prune = Callable[[int, Mapping[str, float]], Collection[str]]


def placement_of(base: BaseModel, config: TrainConfig) -> Placement:
    """After BOS where the tokenizer writes one (the attention sink stays where it was), unless the settings say otherwise."""
    return base.placement if config.placement == "auto" else config.placement


def train(
    base: BaseModel,
    data: TrainSet,
    config: TrainConfig,
    folder: Path,
    start_PD: Tensor,
    *,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Train a soft prompt; the base model is not changed.

    Yields an event after every step, evaluation and sample, and `Finished` at the end. `folder` receives the checkpoint and
    metrics.jsonl. `should_stop` is asked after every step; a run that is stopped saves first.
    Raises DataError, Diverged, OutOfMemory, StorageError, TrainingError.
    """
    run = Run("", data, config, folder, start_PD)
    for _, event in train_together(base, [run], None, resume=resume, should_stop=should_stop):
        if isinstance(event, Lost):
            raise Diverged(
                "the loss is not a number",
                where=f"step {event.step}",
                got=f"loss {event.loss}, gradient norm {event.grad_norm}",
                do="start again with a lower --lr, or with --dtype float32; --resume writes what was learned before",
            )
        yield event


def train_together(
    base: BaseModel,
    runs: Sequence[Run],
    folder: Path | None,
    *,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    prune: Prune = lambda step, losses: (),
) -> Iterator[tuple[str, Event | Lost]]:
    """Train several soft prompts on one base model, which is not changed. Each is what it would be alone, but for rounding.

    Yields (the run's name, event) as `train` does, with `Finished` for each run when it is over: the others go on. `folder`
    receives the checkpoint of all that go on; the runs' own folders their metrics, and their checkpoints when they are over.
    None for a single run, which has its own from the beginning.
    Raises DataError, OutOfMemory, StorageError, TrainingError.
    """
    members = {run.name: _Member(base, run) for run in runs}
    kept = {name: member.kept for name, member in members.items()}
    if len(members) < len(runs) or (folder is None and len(runs) > 1):
        raise ValueError("several runs need a name each, and a folder")
    if resume:
        load_checkpoint(*_only(kept)) if folder is None else load_group(folder, kept)
    for member in members.values():
        member.open_metrics()
    # The same passes from the first step to the last, whichever runs are over.
    pass_tokens = min(run.config.pass_tokens for run in runs)
    saved_at = time.monotonic()

    def save(over: Collection[_Member]) -> None:
        for member in (*over, *going):
            member.flush()
        for member in over if folder is not None else members.values():
            save_checkpoint(member.run.folder, member.state, member.config, member.kept.identity)
        if folder is not None:
            save_group(folder, kept)

    for name, member in members.items():
        if member.progress.finished:
            yield name, member.finished()
    going = [member for member in members.values() if not member.progress.finished]
    step = going[0].progress.step if going else 0

    while going:
        began = time.monotonic()
        if step == 0:
            due = [member for member in going if member.validation]
            for member, first in zip(due, _validation(base, due, pass_tokens), strict=True):
                yield member.name, member.metrics.add(Validation(0, first, best=True))
                member.progress.best_loss = first
        batches = [batch_at(member.run.data.train, step, member.config) for member in going]
        for member in going:
            _set_rate(member.state.optimiser, learning_rate(step, member.config))
            member.state.optimiser.zero_grad()
        losses = _gradients(base, going, batches, pass_tokens)
        stepped: list[tuple[_Member, Step]] = []
        lost: dict[str, Lost] = {}
        for member, loss, examples in zip(going, losses, batches, strict=True):
            norm = float(torch.nn.utils.clip_grad_norm_(member.state.parameters.values(), member.config.clip))
            if not math.isfinite(loss) or not math.isfinite(norm):
                member.progress.finished = "diverged"
                lost[member.name] = Lost(step + 1, loss, norm)
                continue
            member.state.optimiser.step()
            member.progress.step += 1
            _update_average(member.state, member.config)
            tokens = sum(sum(e.labelled) for e in examples)
            member.progress.tokens += tokens
            stepped.append((member, Step(step + 1, loss, learning_rate(step, member.config), norm, tokens, 0.0)))
        step += 1
        seconds = time.monotonic() - began
        for member, done in stepped:
            member.progress.seconds += seconds
            yield member.name, member.metrics.add(replace(done, seconds=seconds))

        alive = [member for member, _ in stepped]
        due = [member for member in alive if member.evaluates_at(step)]
        measured = dict(zip((m.name for m in due), _validation(base, due, pass_tokens), strict=True))
        for member in due:
            best = member.take(step, measured[member.name])
            yield member.name, member.metrics.add(Validation(step, measured[member.name], best))
        for member, sample in _samples(base, [m for m in alive if step % m.config.sample_interval == 0], step):
            yield member.name, member.metrics.add(sample)
        pruned = prune(step, measured) if measured else ()
        for member in alive:
            if step == member.config.steps and not member.progress.finished:
                member.progress.finished = "steps"
            if member.name in pruned and not member.progress.finished:
                member.progress.finished = "pruned"

        over = [member for member in going if member.progress.finished]
        going = [member for member in going if not member.progress.finished]
        stop = should_stop()
        if stop or over or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
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


class _Member:
    """One of the runs while they go on: what it was given, its state, and what it writes down."""

    def __init__(self, base: BaseModel, run: Run) -> None:
        run.config.check_room(base.context_length)
        if not run.data.train:
            raise DataError("there is nothing to train on", where=run.name or "DATA", got="no example")
        self.run, self.name, self.config = run, run.name, run.config
        self.placement = placement_of(base, run.config)
        self.validation = spread_within(run.data.validation, run.config.validation_tokens)
        self.state = _new_state(run.start_PD, run.config, base.embedding_rms)
        identity = {
            "base model": base.fingerprint,
            "number type": str(base.dtype),
            "device": base.device.type,
            "data": run.data.data_hash,
            "order of the texts": hash_of(run.data.train),
        }
        self.kept = Kept(run.folder, self.state, run.config, identity)

    @property
    def progress(self) -> Progress:
        return self.state.progress

    def open_metrics(self) -> None:
        """Once the state is what it goes on from: what was written behind that is cut off."""
        self.metrics = Metrics(self.run.folder / METRICS, self.progress.metrics_bytes)

    def flush(self) -> None:
        self.progress.metrics_bytes = self.metrics.flush()

    def evaluates_at(self, step: int) -> bool:
        return bool(self.validation) and (step % self.config.evaluation_interval == 0 or step == self.config.steps)

    def take(self, step: int, loss: float) -> bool:
        """Whether this validation loss is the best so far; if so the average is kept, and if none was for long the run is over."""
        progress, best = self.progress, loss < self.progress.best_loss
        progress.bad = 0 if best else progress.bad + 1
        if best:
            progress.best_loss, progress.best_step = loss, step
            self.state.best_PD.copy_(self.state.average_PD)
        if self.config.patience and progress.bad >= self.config.patience:
            progress.finished = "early"
        return best

    def finished(self, why: str = "") -> Finished:
        result_PD = self.state.best_PD if self.validation else self.state.average_PD
        return Finished(result_PD.clone(), why or self.progress.finished, self.progress)


def _only(kept: Mapping[str, Kept]) -> tuple[Path, RunState, TrainConfig, Mapping[str, str]]:
    (one,) = kept.values()
    return one.folder, one.state, one.config, one.identity


def _gradients(
    base: BaseModel, going: Sequence[_Member], batches: Sequence[Sequence[Example]], pass_tokens: int
) -> list[float]:
    """Each run's loss; its gradient is added to its parameters'."""
    with memory_named("training", LOWER):
        parts = [
            Batch(fold(member.state.parameters), member.placement, examples)
            for member, examples in zip(going, batches, strict=True)
        ]
        if len(parts) == 1:
            (one,) = parts
            return [loss_and_gradient(base, one.matrix_PD, one.placement, one.examples, pass_tokens=pass_tokens)]
        return losses_and_gradients(base, parts, pass_tokens=pass_tokens)


def _validation(base: BaseModel, due: Sequence[_Member], pass_tokens: int) -> list[float]:
    """The weight averages' losses on the runs' validation sets."""
    with memory_named("training", LOWER):
        parts = [Batch(member.state.average_PD, member.placement, member.validation) for member in due]
        if len(parts) == 1:
            (one,) = parts
            return [mean_nll(base, one.matrix_PD, one.placement, one.examples, pass_tokens=pass_tokens)]
        return mean_nlls(base, parts, pass_tokens=pass_tokens) if parts else []


def _new_state(start_PD: Tensor, config: TrainConfig, embedding_rms: float) -> RunState:
    parameters = new_parameters(start_PD, config)
    groups = [
        # The shared network of the residual method has weights of order 1/sqrt(D); its unit is its own.
        {"params": [tensor], "unit": embedding_rms if name == "embeds_PD" else 0.02}
        for name, tensor in parameters.items()
    ]
    optimiser = torch.optim.Adam(
        groups, lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay, foreach=False
    )
    return RunState(parameters, optimiser, start_PD.clone(), start_PD.clone(), Progress())


def _set_rate(optimiser: torch.optim.Adam, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate * group["unit"]


def _update_average(state: RunState, config: TrainConfig) -> None:
    """Exponential average of the folded matrix; a plain mean while the run is younger than its memory."""
    memory = max(1.0, min(config.average * config.steps, float(state.progress.step)))
    with torch.no_grad():
        state.average_PD.lerp_(fold(state.parameters).detach(), 1 / memory)


def _samples(base: BaseModel, due: Sequence[_Member], step: int) -> Iterator[tuple[_Member, Sample]]:
    """Of runs that ask for as many tokens in one batch."""
    for tokens in sorted({member.config.sample_tokens for member in due}):
        alike = [member for member in due if member.config.sample_tokens == tokens]
        requests = [
            Request(
                member.config.sample_text,
                SoftPrompt(member.state.average_PD.numpy(), Metadata(placement=member.placement)),
                member.config.seed,
            )
            for member in alike
        ]
        texts = complete(base, requests, Sampling(max_tokens=tokens))
        for member, text in zip(alike, texts, strict=True):
            yield member, Sample(step, member.config.sample_text, text)
