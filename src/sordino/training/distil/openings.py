"""What teacher and student continue: the same opening, with the long text in front and without.

In a model's chat template the text is the system message and an opening a user turn. In plain text the text is a heading, and an
opening is the beginning of a text, or a turn of a transcript.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from sordino.errors import DataError
from sordino.models.base_model import BaseModel
from sordino.models.chat_template import chat_ids, end_of_turn
from sordino.texts.batches import read_text
from sordino.texts.cards import USER
from sordino.texts.joined import shared_beginning
from sordino.texts.neutral import packaged_openings
from sordino.training.distil.config import DistilConfig
from sordino.training.distil.source import LongText

Part = Literal["train", "validation", "heldout"]
# With fewer, a set would be too small to judge by.
FEWEST = 8
_VALIDATION = 0.1


@dataclass(frozen=True)
class Opening:
    """text: as plain text. alone: its ids for the student. behind: its ids after `Openings.prefix`, for the teacher."""

    text: str
    part: Part
    alone: tuple[int, ...]
    behind: tuple[int, ...]


@dataclass(frozen=True)
class Openings:
    """prefix: the ids, without BOS, that all of the teacher's rows begin with; the long text is among them. end_id: the token that
    ends a continuation, None where there is none.
    """

    prefix: tuple[int, ...]
    openings: tuple[Opening, ...]
    end_id: int | None

    def of(self, part: Part) -> list[Opening]:
        return [opening for opening in self.openings if opening.part == part]


def make_openings(base: BaseModel, source: LongText, config: DistilConfig) -> Openings:
    """Openings dealt out to three sets. Raises BadInput, DataError, ModelError."""
    has_template = bool(getattr(base.tokenizer, "chat_template", None))
    chat = config.template == "chat" or (config.template == "auto" and has_template)
    own = _lines(read_text(Path(config.openings))) if config.openings else None
    made = _chats(base, source, own) if chat else _plain(base, source, own)
    if len(made) < FEWEST:
        raise DataError(
            "too few", where="--openings", expected=f"at least {FEWEST} lines", got=f"{len(made)} that differ"
        )
    Random(config.seed).shuffle(made)
    # A row needs a token of its own.
    shared = min(shared_beginning([behind for _, _, behind in made]), min(len(behind) for _, _, behind in made) - 1)
    held, checked = (max(2, round(share * len(made))) for share in (config.heldout, _VALIDATION))
    parts: list[Part] = [
        "heldout" if at < held else "validation" if at < held + checked else "train" for at in range(len(made))
    ]
    return Openings(
        tuple(made[0][2][:shared]),
        tuple(
            Opening(text, part, tuple(alone), tuple(behind[shared:]))
            for (text, alone, behind), part in zip(made, parts, strict=True)
        ),
        end_of_turn(base) if chat else base.tokenizer.eos_token_id,
    )


# (as plain text, ids for the student, ids for the teacher)
_Made = list[tuple[str, Sequence[int], Sequence[int]]]


def _chats(base: BaseModel, source: LongText, own: Sequence[str] | None) -> _Made:
    """User turns, every second one after the character's first message, where it has one."""
    system = {"role": "system", "content": source.text}
    made: _Made = []
    for at, turn in enumerate(packaged_openings("turns") if own is None else own):
        messages = [{"role": "user", "content": turn}]
        if source.first_message and at % 2:
            # Templates want a user's turn first.
            messages = [
                {"role": "user", "content": "Hello."},
                {"role": "assistant", "content": source.first_message},
                *messages,
            ]
        alone, behind = (chat_ids(base, turns) for turns in (messages, [system, *messages]))
        made.append((turn, alone, behind))
    return made


def _plain(base: BaseModel, source: LongText, own: Sequence[str] | None) -> _Made:
    """Beginnings of texts, then turns of a transcript, or questions to answer where the text is not a character's."""
    texts = list(packaged_openings("texts") if own is None else own)
    for at, turn in enumerate(packaged_openings("turns") if own is None else ()):
        first = f"{source.name}: {source.first_message}\n" if source.first_message and at % 2 else ""
        turns = f"{first}{USER}: {turn}\n{source.name}:" if source.name else f"Question: {turn}\nAnswer:"
        texts.append(turns)
    heading = base.encode(source.text + "\n\n")
    encoded = [(text, base.encode(text)) for text in texts]
    return [(text, ids, [*heading, *ids]) for text, ids in encoded]


def _lines(text: str) -> list[str]:
    return list(dict.fromkeys(line.strip() for line in text.split("\n") if line.strip()))
