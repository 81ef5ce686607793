"""The base model's own answers among a run's rows: a soft prompt that learns texts alone makes the model write on in their voice,
whatever it is asked. With answers beside the texts it learns to leave the answering as it is.

They are written once, before the first step: greedily, without a soft prompt, to packaged user turns in the model's chat template.
The folder that the run goes on from keeps them, so a resumed run writes none.

Shape key: Q questions, T numbers of a row: its length without the answer, its ids, and -1 as padding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sordino.engine.generate import TextRequest, draw
from sordino.engine.sampling import Sampling
from sordino.errors import ConfigError, DataError, ModelError
from sordino.models.base_model import BaseModel
from sordino.models.chat_template import chat_ids, end_of_turn
from sordino.storage import write_bytes
from sordino.texts.example_store import Example, evenly
from sordino.texts.neutral import packaged_openings
from sordino.training.checkpoint import reading_stored
from sordino.training.config import TrainConfig
from sordino.training.events import OnEvent, working
from sordino.training.strategy import Strategy, agreed

FILE = "answers.jsonl"
QUESTIONS = 48
# Most tokens of an answer, and the fewest that are worth a row.
LENGTH, _LEAST = 64, 16
# Writing them, in positions of a forward pass: all questions are one batch.
WORK = QUESTIONS * LENGTH


@dataclass(frozen=True)
class Questions:
    """ids: of packaged user turns in the model's chat template, up to where the answer begins. end: what the template writes after
    an answer, None where that is no end of a text.
    """

    ids: Mapping[str, tuple[int, ...]]
    end: int | None

    @staticmethod
    def of(base: BaseModel) -> Questions | None:
        """None for a model without a chat template, or with one that refuses them, and for an encoder-decoder."""
        if base.encoder_decoder is not None:
            return None
        try:
            turns = evenly(packaged_openings("turns"), QUESTIONS)
            return Questions(
                {turn: chat_ids(base, [{"role": "user", "content": turn}]) for turn in turns}, end_of_turn(base)
            )
        except ModelError:
            return None

    def room(self, row_tokens: int) -> int:
        """Tokens of the longest answer in rows of `row_tokens`, without its end; may be negative."""
        return min(LENGTH, row_tokens - 1 - max(map(len, self.ids.values())))

    def stand_ins(self, row_tokens: int) -> list[Example]:
        """Rows as long as answers can be, to estimate what these cost before they are written."""
        length = self.room(row_tokens)
        return [_example(turn, [*ids, *ids[:1] * length], len(ids)) for turn, ids in self.ids.items()]


def check_answers(base: BaseModel, config: TrainConfig) -> None:
    """Raise ConfigError where the settings ask for answers that this model does not give, or that the rows have no room for."""
    if not config.answers:
        return
    asked = Questions.of(base)
    if asked is None:
        raise ConfigError(
            "the model has no chat template to answer in", where="--answers", got=base.name, do="leave --answers out"
        )
    if asked.room(config.row_tokens) < _LEAST:
        raise ConfigError(
            "the model's answers do not fit into the rows", where="--answers", got=f"--row-tokens {config.row_tokens}",
            do="raise --row-tokens, or leave --answers out",
        )  # fmt: skip


def stand_ins(base: BaseModel, config: TrainConfig) -> list[Example]:
    """What stands for the answers of a run until they are written; none where its settings ask for none."""
    asked = Questions.of(base) if config.answers else None
    return [] if asked is None else asked.stand_ins(config.row_tokens)


def own_answers(
    base: BaseModel, row_tokens: int, folder: Path, *, resume: bool, on_event: OnEvent, strategy: Strategy
) -> list[Example]:
    """The answers as examples of at most `row_tokens` tokens: of a run that goes on those in its folder, else new ones, which go
    there. Raises DataError, OutOfMemory, StorageError, TrainingError.
    """
    path = folder / FILE
    if resume:
        with reading_stored("the model's answers cannot be read", path, do="start again without --resume"):
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if not lines:
                raise ValueError("an empty file")
            return [_example(line["question"], line["ids"], line["asked"]) for line in lines]
    asked = Questions.of(base)
    assert asked is not None
    # Processors may differ in a near-tie: the answers of the process that saves are everybody's.
    rows_QT = agreed(strategy, _written(base, asked, row_tokens, on_event))
    rows = [[int(number) for number in row if number >= 0] for row in rows_QT.tolist()]
    answers = [
        _example(turn, ids, before) for turn, (before, *ids) in zip(asked.ids, rows, strict=True) if len(ids) > before
    ]
    if not answers:
        raise DataError("the model answers nothing", where=base.name, do="train with --answers off")
    if strategy.saves:
        write_bytes(path, "".join(json.dumps(_line(base, answer)) + "\n" for answer in answers).encode())
    return answers


def _written(base: BaseModel, asked: Questions, row_tokens: int, on_event: OnEvent) -> Tensor:
    """Float64 [Q, T], which holds every id exactly."""
    count = len(asked.ids)
    report = working(f"The model answers {count} questions first", on_event)
    report(0, count)
    sampling = Sampling(max_tokens=asked.room(row_tokens), temperature=0.0)
    drawn = draw(base, [TextRequest(ids) for ids in asked.ids.values()], sampling, rows=count, progress=report)
    rows_QT = torch.full((count, 1 + row_tokens), -1.0, dtype=torch.float64)
    for row_T, ids, answer in zip(rows_QT, asked.ids.values(), drawn, strict=True):
        # An answer that was cut has no end.
        end = [asked.end] if answer.ended and asked.end is not None else []
        row = [len(ids), *ids, *(one.token for one in answer.tokens), *end]
        row_T[: len(row)] = torch.tensor(row)
    return rows_QT


def _example(question: str, ids: Sequence[int], asked: int) -> Example:
    """asked: how many of the ids stand before the answer."""
    return Example(tuple(ids), tuple(at >= asked for at in range(len(ids))), question)


def _line(base: BaseModel, answer: Example) -> Mapping[str, object]:
    asked = answer.labelled.index(True)
    text = base.decode(answer.ids[asked:])
    return {"question": answer.piece, "answer": text, "ids": answer.ids, "asked": asked}
