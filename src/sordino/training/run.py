"""From paths and settings to a finished soft prompt: what the command, the demo and any other caller share.

prepare: texts -> three sets -> examples -> a first matrix        estimate: what it will cost, measured
loop: the steps                                                    finish: the matrix and what its file will say
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from sordino.engine.detokenizer import HALF
from sordino.errors import ConfigError, DataError
from sordino.forward.placement import most_positions
from sordino.models.base_model import BaseModel
from sordino.models.context import check_context
from sordino.models.memory import memory_errors, peak_bytes
from sordino.prompts.kv_prompt import KVPrompt
from sordino.prompts.mixture import Mixture
from sordino.prompts.prompt import Prompt
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.examples import make_examples
from sordino.texts.pieces import Piece, data_hash
from sordino.texts.reading import read_pieces
from sordino.texts.splits import Splits, split_pieces
from sordino.training.config import TrainConfig
from sordino.training.contexts import Contexts
from sordino.training.events import Cost, Finished
from sordino.training.form import form_of
from sordino.training.gradient import Batch, losses_and_gradients, mean_nlls
from sordino.training.initialise import Start, initialise
from sordino.training.loop import LOWER, TrainSet
from sordino.training.parameters import fold, new_parameters
from sordino.training.schedule import batch_at

# A sample is drawn from this many words of the validation text unless a text is given.
SAMPLE_WORDS = 8


@dataclass(frozen=True)
class TextPaths:
    """Where a run's texts are. heldout: empty to hold out a part of `data`. speaker: whose lines of chats are learned."""

    data: tuple[Path, ...]
    heldout: tuple[Path, ...] = ()
    speaker: str | None = None


@dataclass(frozen=True)
class PreparedRun:
    """Everything a run needs. notes: lines for the user about what was read, split and cut."""

    base: BaseModel
    config: TrainConfig
    splits: Splits
    data: TrainSet
    start: Start
    notes: tuple[str, ...]

    @property
    def train_tokens(self) -> int:
        return sum(len(example.ids) for example in self.data.train)


def prepare(
    base: BaseModel,
    config: TrainConfig,
    texts: TextPaths,
    read_prompt: Callable[[str], Prompt | Mixture],
    *,
    started: str | None = None,
    split_seed: int | None = None,
) -> PreparedRun:
    """Read the texts, split them, cut them into examples and choose the first matrix.

    started: of a run that goes on, where its first matrix came from; none is chosen then, as the checkpoint holds what it became.
    split_seed: decides which texts are held out, by default the run's seed. Raises DataError, ConfigError, OutOfMemory.
    """
    config.check_room(base.context_length)
    reading = read_pieces(list(texts.data), speaker=texts.speaker, ends=base.end_markers)
    held = read_pieces(list(texts.heldout), speaker=texts.speaker, ends=base.end_markers) if texts.heldout else None
    seed = config.seed if split_seed is None else split_seed
    splits = split_pieces(reading.pieces, heldout=held.pieces if held else None, seed=seed)
    train = make_examples(splits.train, base, max_tokens=config.row_tokens)
    validation = make_examples(splits.validation, base, max_tokens=config.row_tokens) if splits.validation else None
    data = TrainSet(
        train.examples, validation.examples if validation else (), data_hash(splits.train + splits.validation)
    )
    notes = (*reading.notes, *(held.notes if held else ()), *train.notes)
    return _started(base, config, splits, data, notes, read_prompt, started)


def with_settings(
    prepared: PreparedRun,
    config: TrainConfig,
    read_prompt: Callable[[str], Prompt | Mixture],
    *,
    started: str | None = None,
) -> PreparedRun:
    """Another run on the same three sets: other settings, and their first matrix. Raises as `prepare`."""
    config.check_room(prepared.base.context_length)
    if config.row_tokens != prepared.config.row_tokens:
        raise ValueError("the texts were cut to other rows")
    return _started(
        prepared.base, config, prepared.splits, prepared.data, prepared.notes, read_prompt, started
    )  # fmt: skip


def _started(
    base: BaseModel,
    config: TrainConfig,
    splits: Splits,
    data: TrainSet,
    notes: tuple[str, ...],
    read_prompt: Callable[[str], Prompt | Mixture],
    started: str | None,
) -> PreparedRun:
    total = sum(len(example.ids) for example in data.train)
    if total < config.tokens:
        raise DataError(
            "the text is shorter than the soft prompt", where="DATA", expected=f"at least {config.tokens} tokens", got=total,
            do="add text or lower --tokens",
        )  # fmt: skip
    config = _with_sample_text(base, config, splits.validation or splits.train)
    if started is None:
        with memory_errors("choosing the first matrix", LOWER):
            start = initialise(base, config, form_of(base, config), data.train, data.validation, read_prompt)
    else:
        start = Start(form_of(base, config).empty(base, config.tokens), started)
    return PreparedRun(base, config, splits, data, start, notes)


def estimate(prepared: PreparedRun, *, minutes: float | None = None) -> Cost:
    """Measure four real steps and an evaluation, throw their results away, and reckon the run from them.

    minutes: if given, the number of steps that fit into them.
    """
    return estimate_group([prepared], minutes=minutes)


def estimate_group(runs: Sequence[PreparedRun], *, minutes: float | None = None) -> Cost:
    """`estimate` of several runs on one base model, as long as each other: a step and an evaluation are those of all."""
    base, config = runs[0].base, runs[0].config
    parameters = [new_parameters(run.start.matrix_PD, run.config) for run in runs]
    forms = [form_of(base, run.config) for run in runs]
    contexts = [Contexts.of(base, run.config, run.data.train) for run in runs]
    pass_tokens = min(run.config.pass_tokens for run in runs)
    samples = [list(run.data.validation[:8]) or list(run.data.train[:8]) for run in runs]

    def step(number: int) -> float:
        began = time.monotonic()
        parts = [
            Batch(form.source(fold(own), between.at(number)), batch_at(run.data.train, number, run.config))
            for own, form, between, run in zip(parameters, forms, contexts, runs, strict=True)
        ]
        losses_and_gradients(base, parts, pass_tokens)
        return time.monotonic() - began

    with memory_errors("training", LOWER):
        # The first step pays for memory and thread pools. Of the others, some have text between prompt and rows.
        step(0)
        step_seconds = sum(min(step(number), step(number + 2)) for number in (1, 2)) / 2
        began = time.monotonic()
        parts = [Batch(form.source(r.start.matrix_PD), own) for r, form, own in zip(runs, forms, samples, strict=True)]
        mean_nlls(base, parts, pass_tokens)
    tokens = sum(len(example.ids) for sample in samples for example in sample)
    evaluated = sum(
        min(run.config.validation_tokens, sum(len(example.ids) for example in run.data.validation)) for run in runs
    )
    evaluation_seconds = (time.monotonic() - began) * evaluated / max(tokens, 1)
    steps = config.steps if minutes is None else steps_within(minutes, config, step_seconds, evaluation_seconds)
    return Cost(
        step_seconds,
        evaluation_seconds,
        steps,
        run_seconds(steps, replace(config, steps=steps), step_seconds, evaluation_seconds),
        *_memory(base.device),
    )


def _memory(device: torch.device) -> tuple[int, int]:
    """(the most bytes used so far, and a tenth for what is to come; bytes that are free), of the GPU where there is one."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device) * 1.1), torch.cuda.mem_get_info(device)[0]
    return int(peak_bytes() * 1.1), psutil.virtual_memory().available


def run_seconds(steps: int, config: TrainConfig, step_seconds: float, evaluation_seconds: float) -> float:
    """The run's length: its steps, its evaluations (one more at the start) and its samples, which cost about three steps."""
    evaluations = steps // config.evaluation_interval + 1
    samples = steps // config.sample_interval
    return steps * step_seconds + evaluations * evaluation_seconds + samples * 3 * step_seconds


def steps_within(minutes: float, config: TrainConfig, step_seconds: float, evaluation_seconds: float) -> int:
    """The most steps that fit into `minutes` with their evaluations and samples. Raises ConfigError if not one does."""

    def seconds(steps: int) -> float:
        return run_seconds(steps, replace(config, steps=steps), step_seconds, evaluation_seconds)

    # Where the run chooses how often it evaluates, its length is not quite monotonous in its steps: bisect, then walk back.
    low, high = 0, max(1, int(minutes * 60 / step_seconds))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if seconds(middle) <= minutes * 60 else (low, middle - 1)
    steps = low
    while steps > 0 and seconds(steps) > minutes * 60:
        steps -= 1
    if steps < 1:
        raise ConfigError(
            "not one step fits into the time",
            where="--minutes",
            expected=f"at least {seconds(1) / 60:.1f}",
            got=minutes,
            do="give more minutes, or lower --batch",
        )
    return steps


def finish(
    prepared: PreparedRun,
    finished: Finished,
    metadata: Metadata,
    samples: Sequence[Mapping[str, str]],
    heldout: Mapping[str, Any],
) -> SoftPrompt | KVPrompt:
    """The soft prompt with its provenance. metadata: what the user gave; no path, host or user name is added."""
    base, config = prepared.base, prepared.config
    recipe = {
        key: value
        for key, value in config.to_json().items()
        if key not in ("sample_text", "sample_tokens", "sample_every", "pass_tokens", "init")
    }
    recipe |= {
        "init": prepared.start.how,
        "data_hash": prepared.data.data_hash,
        "steps_done": finished.progress.step,
        "best_step": finished.progress.best_step,
        "tokens_seen": finished.progress.tokens,
        "validation_nll": round(finished.progress.best_loss, 5) if prepared.data.validation else None,
    }
    return form_of(base, config).prompt(
        finished.matrix_PD,
        replace(
            metadata,
            base=base.ref,
            supported=metadata.supported or (base.id,),
            created=datetime.now(UTC).strftime("%Y-%m-%d"),
            training=recipe,
            heldout=heldout,
            samples=tuple(samples),
        ),
    )


def _with_sample_text(base: BaseModel, config: TrainConfig, pieces: Sequence[Piece]) -> TrainConfig:
    """The settings with a text to continue, which fits the model's context beside the prompt and its continuation."""
    in_front = most_positions(base, config.tokens)
    room = base.context_length - in_front - config.sample_tokens
    text = config.sample_text or _opening(pieces)
    ids = base.encode(text)
    if len(ids) <= room:
        return replace(config, sample_text=text)
    if config.sample_text or room < 1:
        check_context(
            {"in front": in_front, "text": len(ids), "new": config.sample_tokens},
            base.context_length,
            what="the text of the samples",
            where="--sample-text",
            do="shorten the text or lower --tokens",
        )
    return replace(config, sample_text=base.decode(ids[-min(room, config.row_tokens) :]).lstrip(HALF))


def _opening(pieces: Sequence[Piece]) -> str:
    """The first words of a validation piece: a text that the prompt was not trained on."""
    piece = pieces[0]
    if piece.kind == "text":
        return " ".join(piece.text.split()[:SAMPLE_WORDS])
    if piece.kind == "completion":
        return piece.prompt
    return ""
