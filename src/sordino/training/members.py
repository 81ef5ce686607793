"""The runs of a group during training, one by one: what each was given, its state, its metrics and its samples.

Shape key: P virtual tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from sordino.engine.generate import TextRequest, complete
from sordino.engine.sampling import Sampling
from sordino.errors import DataError
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata
from sordino.texts.examples import Example
from sordino.training.checkpoint import Snapshot
from sordino.training.config import TrainConfig
from sordino.training.contexts import Contexts
from sordino.training.events import METRICS, E, Finished, MetricsFile, Sample
from sordino.training.form import form_of
from sordino.training.gradient import Batch
from sordino.training.schedule import answer_rows, batch_at, hash_of, spread_within
from sordino.training.state import Progress, fold, new_state


@dataclass(frozen=True)
class TrainSet:
    """The examples of a run and the hash of the texts they came from. answers: the model's own (`answers.py`), where the run's
    settings ask for some.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    data_hash: str
    answers: Sequence[Example] = ()

    def rows_at(self, step: int, config: TrainConfig) -> list[Example]:
        """What a step trains on."""
        rows = batch_at(self.train, step, config)
        if self.answers:
            rows += batch_at(self.answers, step, replace(config, batch=answer_rows(config)))
        return rows


@dataclass(frozen=True)
class Run:
    """One run: its texts, settings, folder and first matrix. name: no other run's of its group."""

    name: str
    data: TrainSet
    config: TrainConfig
    folder: Path
    start_PD: Tensor


class GroupMember:
    """A run during training: what it was given, its state, and its metrics."""

    def __init__(self, base: BaseModel, run: Run, neutral: Sequence[int]) -> None:
        run.config.check_room(base.context_length)
        if not run.data.train:
            raise DataError("there is nothing to train on", where=run.name or "DATA", got="no example")
        if bool(run.data.answers) != bool(run.config.answers):
            raise ValueError("a run has answers where its settings ask for them, and only there")
        self.run, self.name, self.config = run, run.name, run.config
        self.form = form_of(base, run.config)
        self.contexts = Contexts.of(base, run.config, run.data.train, neutral)
        self.validation = spread_within(run.data.validation, run.config.validation_tokens)
        self.state = new_state(run.start_PD, run.config, self.form.unit)
        identity = {
            "base model": base.fingerprint,
            "number type": str(base.dtype),
            "device": base.device.type,
            "data": run.data.data_hash,
            "order of the texts": hash_of(run.data.train),
            **({"set of answers": hash_of(run.data.answers)} if run.data.answers else {}),
            **self.contexts.identity(),
        }
        self.snapshot = Snapshot(run.folder, self.state, run.config, identity)
        self.metrics: MetricsFile | None = None

    @property
    def progress(self) -> Progress:
        return self.state.progress

    def batch(self, step: int) -> Batch:
        """What a step trains on."""
        source = self.form.source(fold(self.state.parameters), self.contexts.at(step))
        return Batch(source, self.run.data.rows_at(step, self.config), step)

    def judged(self) -> list[Batch]:
        """The validation rows after the weight average. In a run with contexts, every second row comes after other text: a prompt
        that works from a distance may be a little worse right in front.
        """
        context, rows = self.contexts.of_validation(), self.validation
        sets = [(rows[::2], ()), (rows[1::2], context)] if context else [(rows, ())]
        return [
            Batch(self.form.source(self.state.average_PD, behind), part, self.progress.step)
            for part, behind in sets
            if part
        ]

    def open_metrics(self) -> None:
        """Called once the state is loaded: what was written after that state is cut off."""
        self.metrics = MetricsFile(self.run.folder / METRICS, self.progress.metrics_bytes)

    def record(self, event: E) -> E:
        return event if self.metrics is None else self.metrics.add(event)

    def flush(self) -> None:
        if self.metrics is not None:
            self.progress.metrics_bytes = self.metrics.flush()

    def evaluates_at(self, step: int) -> bool:
        return bool(self.validation) and (step % self.config.evaluation_interval == 0 or step == self.config.steps)

    def take(self, step: int, loss: float) -> bool:
        """Whether this validation loss is the best so far; if so keep the average. After `patience` worse ones the run is over."""
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


def samples_of(base: BaseModel, due: Sequence[GroupMember], step: int) -> Iterator[tuple[GroupMember, Sample]]:
    """Continuations by the runs' prompts as they are now; runs with equal `sample_tokens` share a batch."""
    for tokens in sorted({member.config.sample_tokens for member in due}):
        alike = [member for member in due if member.config.sample_tokens == tokens]
        requests = [
            TextRequest(
                member.config.sample_text, member.form.prompt(member.state.average_PD, Metadata()), member.config.seed
            )
            for member in alike
        ]
        texts = complete(base, requests, Sampling(max_tokens=tokens))
        for member, text in zip(alike, texts, strict=True):
            yield member, Sample(step, member.config.sample_text, text)
