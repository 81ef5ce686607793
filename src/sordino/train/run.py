"""From paths and settings to a finished soft prompt: what the command, the demo and any other caller share.

prepare: texts -> three sets -> examples -> a first matrix        estimate: what it will cost, measured
loop.train: the steps                                              finish: the matrix and what its file will say
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

from sordino.base_model import BaseModel
from sordino.errors import ConfigError, DataError
from sordino.soft_prompt import Metadata, SoftPrompt
from sordino.texts.examples import make_examples
from sordino.texts.pieces import Piece, data_hash
from sordino.texts.reading import read_pieces
from sordino.texts.splits import Splits, split_pieces
from sordino.train.config import TrainConfig
from sordino.train.gradient import loss_and_gradient, mean_nll
from sordino.train.initialise import Start, initialise
from sordino.train.loop import Finished, Sample, TrainSet, batch_at, placement_of
from sordino.train.parameters import fold, new_parameters

# A sample is drawn from this many words of the validation text unless a text is given.
SAMPLE_WORDS = 8


@dataclass(frozen=True)
class Prepared:
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


@dataclass(frozen=True)
class Estimate:
    """What a run will cost on this machine. step_seconds is measured; memory_bytes is the process's peak so far plus room."""

    step_seconds: float
    evaluation_seconds: float
    steps: int
    seconds: float
    memory_bytes: int
    free_bytes: int


def prepare(
    base: BaseModel,
    config: TrainConfig,
    paths: Sequence[Path],
    heldout: Sequence[Path] | None,
    read_prompt: Callable[[str], SoftPrompt],
    *,
    speaker: str | None = None,
) -> Prepared:
    """Read the texts, split them, cut them into examples and choose the first matrix. Raises DataError, ConfigError."""
    config.check_room(base.context_length)
    reading = read_pieces(list(paths), speaker=speaker)
    held = read_pieces(list(heldout), speaker=speaker) if heldout else None
    splits = split_pieces(reading.pieces, heldout=held.pieces if held else None, seed=config.seed)
    train = make_examples(splits.train, base, max_tokens=config.row_tokens)
    validation = make_examples(splits.validation, base, max_tokens=config.row_tokens) if splits.validation else None
    total = sum(len(example.ids) for example in train.examples)
    if total < config.tokens:
        raise DataError(
            "the text is shorter than the soft prompt", where="DATA", expected=f"at least {config.tokens} tokens", got=total,
            do="add text or lower --tokens",
        )  # fmt: skip
    data = TrainSet(
        train.examples, validation.examples if validation else (), data_hash(splits.train + splits.validation)
    )
    start = initialise(base, config, placement_of(base, config), data.train, data.validation, read_prompt)
    if not config.sample_text:
        config = replace(config, sample_text=_opening(splits.validation or splits.train))
    notes = (*reading.notes, *(held.notes if held else ()), *train.notes)
    return Prepared(base, config, splits, data, start, notes)


def estimate(prepared: Prepared, *, minutes: float | None = None) -> Estimate:
    """Measure two real steps and an evaluation, throw their results away, and reckon the run from them.

    minutes: if given, the number of steps that fit into them.
    """
    base, config, data = prepared.base, prepared.config, prepared.data
    placement = placement_of(base, config)
    parameters = new_parameters(prepared.start.matrix_PD, config)

    def step(number: int) -> float:
        began = time.monotonic()
        batch = batch_at(data.train, number, config)
        loss_and_gradient(base, fold(parameters), placement, batch, pass_tokens=config.pass_tokens)
        return time.monotonic() - began

    # The first step pays for memory and thread pools.
    step(0)
    step_seconds = min(step(1), step(2))
    began = time.monotonic()
    sample = list(data.validation[:8]) or list(data.train[:8])
    mean_nll(base, prepared.start.matrix_PD, placement, sample, pass_tokens=config.pass_tokens)
    tokens = sum(len(example.ids) for example in sample)
    evaluated = min(config.validation_tokens, sum(len(example.ids) for example in data.validation))
    evaluation_seconds = (time.monotonic() - began) * evaluated / max(tokens, 1)
    steps = config.steps if minutes is None else steps_within(minutes, step_seconds, evaluation_seconds)
    memory = psutil.Process().memory_info().rss
    return Estimate(
        step_seconds,
        evaluation_seconds,
        steps,
        run_seconds(steps, replace(config, steps=steps), step_seconds, evaluation_seconds),
        int(memory * 1.1),
        psutil.virtual_memory().available,
    )


def run_seconds(steps: int, config: TrainConfig, step_seconds: float, evaluation_seconds: float) -> float:
    """The run's length: its steps, its evaluations (one more at the start) and its samples, which cost about three steps."""
    evaluations = steps // config.evaluation_interval + 1
    samples = steps // config.sample_interval
    return steps * step_seconds + evaluations * evaluation_seconds + samples * 3 * step_seconds


def steps_within(minutes: float, step_seconds: float, evaluation_seconds: float) -> int:
    """How many steps fit into `minutes` with ten evaluations and five samples. Raises ConfigError if not one does."""
    fixed = 11 * evaluation_seconds + 5 * 3 * step_seconds
    steps = int((minutes * 60 - fixed) / step_seconds)
    if steps < 1:
        raise ConfigError(
            "not one step fits into the time",
            where="--minutes",
            expected=f"at least {(fixed + step_seconds) / 60:.1f}",
            got=minutes,
            do="give more minutes, or lower --batch",
        )
    return steps


def finish(
    prepared: Prepared,
    finished: Finished,
    metadata: Metadata,
    samples: Sequence[Mapping[str, str]],
    heldout: Mapping[str, Any],
) -> SoftPrompt:
    """The soft prompt with its provenance. metadata: what the user said about it; no path, host or user name is added."""
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
    return SoftPrompt(
        finished.matrix_PD.detach().numpy(),
        replace(
            metadata,
            base=base.ref,
            supported=metadata.supported or (base.id,),
            placement=placement_of(base, config),
            created=datetime.now(UTC).strftime("%Y-%m-%d"),
            training=recipe,
            heldout=heldout,
            samples=tuple(samples),
        ),
    )


def nearest_words(base: BaseModel, prompt: SoftPrompt, *, count: int = 5) -> list[list[tuple[str, float]]]:
    """For each virtual token the vocabulary's nearest words by cosine: what the prompt would be, were it text."""
    ids = torch.arange(base.vocab_size, device=base.device)
    with torch.inference_mode():
        vocabulary_VD = torch.nn.functional.normalize(base.embed(ids).float(), dim=1)
        matrix_PD = torch.nn.functional.normalize(torch.from_numpy(prompt.matrix.copy()).to(base.device), dim=1)
        values_PC, ids_PC = (matrix_PD @ vocabulary_VD.T).topk(count, dim=1)
    return [
        [(base.decode([token]), value) for token, value in zip(tokens, values, strict=True)]
        for tokens, values in zip(ids_PC.tolist(), values_PC.tolist(), strict=True)
    ]


def sample_pair(base: BaseModel, sample: Sample, without: str) -> dict[str, str]:
    """A sample as a soft prompt's file holds it."""
    return {"prompt": sample.prompt, "with": sample.text, "without": without}


def _opening(pieces: Sequence[Piece]) -> str:
    """The first words of a validation piece: a text that the prompt was not trained on."""
    piece = pieces[0]
    if piece.kind == "text":
        return " ".join(piece.text.split()[:SAMPLE_WORDS])
    if piece.kind == "completion":
        return piece.prompt
    return ""
