"""The training loop: one place, top to bottom.

Everything random (order of examples, initialisation) is a function of the seed and the step, and nothing else is kept between
steps but `RunState`; so a run that was killed and resumed gives the same bits as one that never stopped.

Shape key: P virtual tokens, D model width.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sordino.base_model import BaseModel
from sordino.errors import DataError, Diverged, StorageError
from sordino.generate import Request, complete
from sordino.memory import memory_named
from sordino.sampling import Sampling
from sordino.soft_prompt import Metadata, Placement, SoftPrompt
from sordino.texts.examples import Example
from sordino.train.checkpoint import Progress, RunState, load_checkpoint, save_checkpoint
from sordino.train.config import TrainConfig
from sordino.train.gradient import loss_and_gradient, mean_nll
from sordino.train.parameters import fold, new_parameters
from sordino.train.schedule import batch_at, hash_of, learning_rate

METRICS = "metrics.jsonl"
CHECKPOINT_SECONDS = 15.0
LOWER = "lower --pass-tokens (same result, less memory), then --batch, --row-tokens or --tokens"


@dataclass(frozen=True)
class Step:
    """One optimiser step is done. loss: nats a token, before the step. seconds: its duration."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Validation:
    """The weight average's loss on the validation set, nats a token; whether it is the best so far."""

    step: int
    loss: float
    best: bool


@dataclass(frozen=True)
class Sample:
    """A continuation by the prompt as it is now, always of the same text with the same seed."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Finished:
    """matrix_PD: the result, float32. why: "steps" (all done), "early" (validation stopped falling), "stopped" (asked to)
    or "diverged" (at an earlier sitting).
    """

    matrix_PD: Tensor
    why: str
    progress: Progress


Event = Step | Validation | Sample | Finished
E = TypeVar("E", Step, Validation, Sample)


@dataclass(frozen=True)
class TrainSet:
    """The examples of a run and the hash of the texts they came from."""

    train: Sequence[Example]
    validation: Sequence[Example]
    data_hash: str


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
    config.check_room(base.context_length)
    if not data.train:
        raise DataError("there is nothing to train on", where="DATA", got="no example")
    placement = placement_of(base, config)
    identity = {
        "base model": base.fingerprint,
        "number type": str(base.dtype),
        "device": base.device.type,
        "data": data.data_hash,
        "order of the texts": hash_of(data.train),
    }
    state = _new_state(start_PD, config, base.embedding_rms)
    if resume:
        load_checkpoint(folder, state, config, identity)
    metrics = _Metrics(folder / METRICS, state.progress.metrics_bytes)
    progress = state.progress
    validation = _within(data.validation, config.validation_tokens)

    def measure() -> float:
        with memory_named("training", LOWER):
            return mean_nll(base, state.average_PD, placement, validation, pass_tokens=config.pass_tokens)

    saved_at = time.monotonic()

    while progress.step < config.steps and not progress.finished:
        began = time.monotonic()
        if progress.step == 0 and validation:
            first = measure()
            yield metrics.add(Validation(0, first, best=True))
            progress.best_loss = first
        examples = batch_at(data.train, progress.step, config)
        rate = learning_rate(progress.step, config)
        _set_rate(state.optimiser, rate)
        state.optimiser.zero_grad()
        with memory_named("training", LOWER):
            loss = loss_and_gradient(base, fold(state.parameters), placement, examples, pass_tokens=config.pass_tokens)
        norm = float(torch.nn.utils.clip_grad_norm_(state.parameters.values(), config.clip))
        if not math.isfinite(loss) or not math.isfinite(norm):
            progress.metrics_bytes, progress.finished = metrics.flush(), "diverged"
            save_checkpoint(folder, state, config, identity)
            raise Diverged(
                "the loss is not a number",
                where=f"step {progress.step + 1}",
                got=f"loss {loss}, gradient norm {norm}",
                do="start again with a lower --lr, or with --dtype float32; --resume writes what was learned before",
            )
        state.optimiser.step()
        progress.step += 1
        _update_average(state, config)
        tokens = sum(sum(e.labelled) for e in examples)
        progress.tokens += tokens
        seconds = time.monotonic() - began
        progress.seconds += seconds
        yield metrics.add(Step(progress.step, loss, rate, norm, tokens, seconds))

        last = progress.step == config.steps
        if validation and (progress.step % config.evaluation_interval == 0 or last):
            measured = measure()
            best = measured < progress.best_loss
            progress.bad = 0 if best else progress.bad + 1
            if best:
                progress.best_loss, progress.best_step = measured, progress.step
                state.best_PD.copy_(state.average_PD)
            yield metrics.add(Validation(progress.step, measured, best))
            if config.patience and progress.bad >= config.patience:
                progress.finished = "early"
        if progress.step % config.sample_interval == 0:
            yield metrics.add(_sample(base, state, config, placement, progress.step))
        if last and not progress.finished:
            progress.finished = "steps"
        stop = should_stop()
        if stop or progress.finished or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            progress.metrics_bytes = metrics.flush()
            save_checkpoint(folder, state, config, identity)
            saved_at = time.monotonic()
        if stop and not progress.finished:
            yield Finished(_result(state, validation), "stopped", progress)
            return
    yield Finished(_result(state, validation), progress.finished, progress)


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


def _result(state: RunState, validation: Sequence[Example]) -> Tensor:
    return (state.best_PD if validation else state.average_PD).clone()


def _within(examples: Sequence[Example], tokens: int) -> list[Example]:
    """Examples spread evenly over the set, about `tokens` in all: an evaluation must stay cheap beside the steps."""
    total = sum(len(e.ids) for e in examples)
    stride = max(1, math.ceil(total / tokens)) if examples else 1
    return list(examples[::stride])


def _sample(base: BaseModel, state: RunState, config: TrainConfig, placement: Placement, step: int) -> Sample:
    prompt = SoftPrompt(state.average_PD.numpy(), Metadata(placement=placement))
    sampling = Sampling(max_tokens=config.sample_tokens)
    return Sample(
        step, config.sample_text, complete(base, [Request(config.sample_text, prompt, config.seed)], sampling)[0]
    )


class _Metrics:
    """metrics.jsonl: a line an event. What a killed run wrote behind its last checkpoint is cut off, as it will be done again."""

    def __init__(self, path: Path, keep: int) -> None:
        self._path = path
        with path.open("ab") as file:
            file.truncate(min(keep, path.stat().st_size))

    def add(self, event: E) -> E:
        line: dict[str, Any] = {"kind": type(event).__name__.lower(), **asdict(event)}
        try:
            with self._path.open("ab") as file:
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise StorageError(
                f"the run's metrics could not be written ({error.strerror})",
                where=self._path,
                do="make room, then --resume",
            ) from error
        return event

    def flush(self) -> int:
        """Bytes written, safely on disk."""
        with self._path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()
