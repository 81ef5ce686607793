"""From a long text to a run: the teacher's continuations as examples, and how the result is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sordino.errors import DataError
from sordino.models.base_model import BaseModel
from sordino.models.context import check_context
from sordino.texts.cards import USER
from sordino.texts.examples import Example
from sordino.texts.pieces import Piece
from sordino.texts.splits import Splits
from sordino.training.distil.config import DistilConfig
from sordino.training.distil.openings import Openings, Part, make_openings
from sordino.training.distil.source import LongText, read_source
from sordino.training.distil.targets import examples
from sordino.training.distil.teacher import FILE, Continuation
from sordino.training.job import Job
from sordino.training.loop import TrainSet
from sordino.training.run import PreparedRun, first_matrix

_TRAINED: tuple[Part, ...] = ("train", "validation")


@dataclass(frozen=True)
class Lesson:
    """What a student learns. source: the long text; ids: its own tokens. written: all of the teacher's continuations."""

    source: LongText
    ids: tuple[int, ...]
    openings: Openings
    written: tuple[Continuation, ...]

    def of(self, part: Part) -> list[Continuation]:
        """The continuations in one of the three sets, without empty ones, in order."""
        return [one for one in self.written if one.opening.part == part and one.drawn]


def prepare_lesson(base: BaseModel, job: Job, config: DistilConfig) -> Lesson:
    """Read the text and choose the openings; nothing is written yet. Raises DataError, BadInput, ConfigError, ModelError."""
    base.check_decoder("distillation")
    source = read_source(job.texts.data, config.text)
    ids = tuple(base.encode(source.text))
    if len(ids) <= config.tokens:
        raise DataError(
            "no longer than the soft prompt", where="TEXT", expected=f"more than {config.tokens} tokens",
            got=len(ids), do="lower --tokens, or use the text as it is",
        )  # fmt: skip
    # First without openings: each is encoded with the whole text.
    _check_room(base, config, len(ids), 0)
    openings = make_openings(base, source, config)
    _check_room(base, config, len(openings.prefix), max(len(one.behind) for one in openings.openings))
    return Lesson(source, ids, openings, ())


def _check_room(base: BaseModel, config: DistilConfig, text: int, opening: int) -> None:
    """Raise ConfigError where a continuation of the longest opening does not fit the model's context."""
    check_context(
        {"BOS": len(base.bos_ids), "text": text} | ({"opening": opening} if opening else {}) | {"new": config.length},
        base.context_length,
        what="a continuation of the text",
        where="TEXT",
        do="shorten the text, or lower --length",
    )


def prepare_distillation(base: BaseModel, job: Job, lesson: Lesson) -> PreparedRun:
    """A run on the lesson's examples, which starts from an excerpt of the long text."""
    train, validation = (examples(base, lesson.openings, lesson.of(part)) for part in _TRAINED)
    if not train or not validation:
        raise DataError("the model wrote nothing after the text", where="TEXT", do="give other --openings")
    config = replace(
        job.config,
        row_tokens=max(2, *(len(example.ids) for example in (*train, *validation))),
        sample_text=job.config.sample_text or _sample_text(lesson),
    )
    config.check_room(base.context_length)
    digest = hashlib.sha256((job.folder / FILE).read_bytes()).hexdigest()
    data = TrainSet(train, validation, digest)
    text = Example(lesson.ids, (True,) * len(lesson.ids), "the text")
    start = first_matrix(base, config, replace(data, train=[text]), job.started)
    pieces = {part: _pieces(base, lesson.of(part)) for part in ("train", "validation", "heldout")}
    splits = Splits(pieces["train"], pieces["validation"], pieces["heldout"], _how(lesson), ())
    return PreparedRun(base, config, splits, data, start, ())


def _pieces(base: BaseModel, written: Sequence[Continuation]) -> tuple[Piece, ...]:
    """The continuations as texts, for the report and the inspection."""
    return tuple(
        Piece(f"continuation {at}", "text", f"{one.opening.text} {base.decode([drawn.token for drawn in one.drawn])}")
        for at, one in enumerate(written)
    )


def _how(lesson: Lesson) -> str:
    held, train = len(lesson.openings.of("heldout")), len(lesson.openings.of("train"))
    return (
        f"The text has {len(lesson.ids)} tokens. With it in front the model wrote {len(lesson.written)} continuations. "
        f"{train} openings are trained on, {held} are held out."
    )


def _sample_text(lesson: Lesson) -> str:
    """A held-out opening, as a line of a transcript where the text is a character's."""
    text = lesson.openings.of("heldout")[0].text
    name = lesson.source.name
    return f"{USER}: {text}\n{name}:" if name and not text.endswith(f"{name}:") else text
