"""From paths and settings to a finished soft prompt: what the command, the demo and any other caller share.

prepare: texts -> three sets -> examples -> a first matrix        estimate: what it will cost, measured
loop: the steps                                                    finish: the matrix and what its file will say
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import psutil
import torch

from sordino.engine.detokenizer import HALF
from sordino.errors import DataError
from sordino.forward.placement import most_positions
from sordino.models.base_model import BaseModel
from sordino.models.context import check_context
from sordino.models.memory import memory_errors, peak_bytes
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.prompts.soft_prompt import Metadata, today
from sordino.texts.example_store import tokens_of
from sordino.texts.examples import make_examples
from sordino.texts.pieces import Piece, data_hash
from sordino.texts.splits import Splits
from sordino.training.answers import WORK, check_answers, stand_ins
from sordino.training.calibration import CALIBRATION, Calibration
from sordino.training.config import TextPaths, TrainConfig
from sordino.training.contexts import Contexts, neutral_ids
from sordino.training.events import Cost, Finished, OnEvent, nobody, working
from sordino.training.form import form_of, notes_on_hold
from sordino.training.gradient import Batch, losses_and_gradients, mean_nlls
from sordino.training.initialise import Start, initialise
from sordino.training.judging import Judging, MeasureResult, RunSize, judging_of, work
from sordino.training.loop import LOWER, Run, TrainSet
from sordino.training.reading import read_split
from sordino.training.schedule import answer_rows, chosen_steps, run_seconds, steps_wanted, steps_within
from sordino.training.state import fold, new_parameters
from sordino.training.strategy import SINGLE_PROCESS, Strategy, agreed_number

# A sample is drawn from this many words of the validation text unless a text is given.
SAMPLE_WORDS = 8


@dataclass(frozen=True)
class PreparedRun:
    """Everything a run needs. notes: lines for the user about what was read, split and cut. measure: see `Judging`."""

    base: BaseModel
    config: TrainConfig
    splits: Splits
    data: TrainSet
    start: Start
    notes: tuple[str, ...]
    measure: MeasureResult | None = None

    @property
    def train_tokens(self) -> int:
        return tokens_of(self.data.train)

    @cached_property
    def size(self) -> RunSize:
        """What its steps read and what there is to judge it by. The held-out tokens are estimated from their characters."""
        count, tokens = len(self.data.train), self.train_tokens
        characters, held = (sum(piece.size for piece in own) for own in (self.splits.train, self.splits.heldout))
        rows = min(self.config.batch, count) * tokens / count
        if longest := stand_ins(self.base, self.config):
            rows += answer_rows(self.config) * tokens_of(longest) / len(longest)
        heldout = math.ceil(held * tokens / max(characters, 1))
        # After other text an encoder-decoder's prompt is not measured.
        context = self.base.context_length if self.base.encoder_decoder is None else 0
        return RunSize(self.config.steps, rows + self.config.tokens, heldout, context)

    def judging(self, steps: int) -> Judging:
        """How its result is measured after so many steps."""
        return judging_of(self.config, replace(self.size, steps=steps), self.measure)

    def run(self, folder: Path, name: str = "") -> Run:
        """For the training loop."""
        return Run(name, self.data, self.config, folder, self.start.matrix_PD)


def prepare(
    base: BaseModel,
    config: TrainConfig,
    texts: TextPaths,
    *,
    started: str | None = None,
    split_seed: int | None = None,
    on_event: OnEvent = nobody,
) -> PreparedRun:
    """Read the texts, split them, cut them into examples and choose the first matrix.

    started: of a run that goes on, where its first matrix came from; none is chosen then, as the checkpoint holds what it became.
    split_seed: decides which texts are held out, by default the run's seed. Raises DataError, ConfigError, OutOfMemory.
    """
    config.check_room(base.context_length)
    if config.only_decoders is not None:
        base.check_decoder(config.only_decoders)
    seed = config.seed if split_seed is None else split_seed
    splits, read = read_split(texts, base.end_markers, seed, on_event)
    train = make_examples(
        splits.train,
        base,
        max_tokens=config.row_tokens,
        objective=config.objective,
        progress=working("Tokenizing the texts", on_event),
    )
    validation = None
    if splits.validation:
        validation = make_examples(splits.validation, base, max_tokens=config.row_tokens, objective=config.objective)
    data = TrainSet(
        train.examples, validation.examples if validation else (), data_hash(splits.train + splits.validation)
    )
    notes = (*read, *train.notes, *notes_on_hold(base, config))
    return _started(base, config, splits, data, notes, started)


def with_settings(prepared: PreparedRun, config: TrainConfig, *, started: str | None = None) -> PreparedRun:
    """Another run on the same three sets: other settings, and their first matrix. Raises as `prepare`."""
    config.check_room(prepared.base.context_length)
    if config.row_tokens != prepared.config.row_tokens:
        raise ValueError("the texts were cut to other rows")
    return _started(prepared.base, config, prepared.splits, prepared.data, prepared.notes, started)


def _started(
    base: BaseModel,
    config: TrainConfig,
    splits: Splits,
    data: TrainSet,
    notes: tuple[str, ...],
    started: str | None,
) -> PreparedRun:
    total = tokens_of(data.train)
    if total < config.tokens:
        raise DataError(
            "the text is shorter than the soft prompt", where="DATA", expected=f"at least {config.tokens} tokens", got=total,
            do="add text or lower --tokens",
        )  # fmt: skip
    config = _with_sample_text(base, config, splits.validation or splits.train)
    check_answers(base, config)
    start = first_matrix(base, config, data, started)
    return PreparedRun(base, config, splits, data, start, notes)


def first_matrix(base: BaseModel, config: TrainConfig, data: TrainSet, started: str | None) -> Start:
    """Where a run on these texts starts. started: as for `prepare`. Raises ConfigError, DataError, OutOfMemory."""
    with memory_errors("choosing the first matrix", LOWER):
        form = form_of(base, config)
        if started is not None:
            return Start(form.empty(base, config.tokens), started)
        return initialise(base, config, form, data.train, data.validation)


def estimate(
    runs: Sequence[PreparedRun], calibration: Calibration = CALIBRATION, strategy: Strategy = SINGLE_PROCESS
) -> Cost:
    """Measure a few real steps and an evaluation, discard their results, and estimate from them what the runs cost together.

    runs: on one base model, as long as each other; a step and an evaluation are those of all. The times are of the process that
    saves.
    """
    base, config = runs[0].base, runs[0].config
    step_seconds, evaluation_seconds = (agreed_number(strategy, each) for each in _measured_seconds(runs, strategy))

    step_work = sum(run.size.step_work for run in runs)
    answering = WORK / step_work * step_seconds if any(run.config.answers for run in runs) else 0.0

    def measuring(steps: int) -> float:
        return sum(work(run.judging(steps), run.config, run.size) for run in runs) / step_work * step_seconds

    def whole(steps: int) -> float:
        shorter = replace(config, steps=steps)
        return answering + run_seconds(steps, shorter, step_seconds, evaluation_seconds) + measuring(steps)

    steps, wanted = config.steps, 0
    if calibration.minutes is not None:
        steps = steps_within(calibration.minutes, whole, step_seconds)
    elif calibration.choose_steps:
        wanted = max(steps_wanted(run.config, run.train_tokens) for run in runs)
        steps = chosen_steps(wanted, whole, step_seconds)
    return Cost(
        step_seconds, evaluation_seconds, steps, whole(steps), *_memory(base.device),
        measuring_seconds=measuring(steps), wanted_steps=wanted, wanted_seconds=whole(wanted) if wanted else 0.0,
    )  # fmt: skip


def _measured_seconds(runs: Sequence[PreparedRun], strategy: Strategy) -> tuple[float, float]:
    """The seconds of one step and of one evaluation, of all runs together."""
    base = runs[0].base
    parameters = [new_parameters(run.start.matrix_PD, run.config) for run in runs]
    forms = [form_of(base, run.config) for run in runs]
    neutral = neutral_ids(base) if any(run.config.context for run in runs) else ()
    contexts = [Contexts.of(base, run.config, run.data.train, neutral) for run in runs]
    pass_tokens = min(run.config.pass_tokens for run in runs)
    samples = [list(run.data.validation[:8]) or list(run.data.train[:8]) for run in runs]
    # The answers are not written yet.
    sets = [replace(run.data, answers=stand_ins(base, run.config)) for run in runs]

    def step(number: int) -> float:
        began = time.monotonic()
        parts = [
            Batch(form.source(fold(own), between.at(number)), data.rows_at(number, run.config))
            for own, form, between, data, run in zip(parameters, forms, contexts, sets, runs, strict=True)
        ]
        losses_and_gradients(base, parts, pass_tokens, strategy)
        return time.monotonic() - began

    with memory_errors("training", LOWER):
        # The first step pays for memory and thread pools. Of the others, some have text between prompt and rows, which is of
        # average length in the middle of a run.
        step(0)
        middle = runs[0].config.steps // 4 * 2
        step_seconds = sum(min(step(middle + number), step(middle + number + 2)) for number in (1, 2)) / 2
        began = time.monotonic()
        parts = [Batch(form.source(r.start.matrix_PD), own) for r, form, own in zip(runs, forms, samples, strict=True)]
        mean_nlls(base, parts, pass_tokens, strategy)
    tokens = sum(len(example.ids) for sample in samples for example in sample)
    evaluated = sum(min(run.config.validation_tokens, tokens_of(run.data.validation)) for run in runs)
    return step_seconds, (time.monotonic() - began) * evaluated / max(tokens, 1)


def _memory(device: torch.device) -> tuple[int, int]:
    """(peak bytes so far and a tenth more for the run, free bytes), of the GPU if there is one."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device) * 1.1), torch.cuda.mem_get_info(device)[0]
    return int(peak_bytes() * 1.1), psutil.virtual_memory().available


def finish(prepared: PreparedRun, finished: Finished, metadata: Metadata) -> SinglePrompt:
    """The soft prompt with its provenance. metadata: what the user gave; no path, host or user name is added."""
    base, config = prepared.base, prepared.config
    recipe = {
        key: value
        for key, value in asdict(config).items()
        if key not in ("sample_text", "sample_tokens", "sample_every", "pass_tokens", "init", "measure")
    }
    recipe |= {
        "init": prepared.start.how,
        "dtype": str(base.dtype).removeprefix("torch."),
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
            created=today(),
            training=recipe,
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
