"""Consecutive texts, encoded as one text.

A tokenizer looks across a join: Llama 2's marks the first word of a text, BPE merges characters of both sides, and a special token
may take the white space after it. So parts encoded separately give tokens that the whole text does not have. Here the whole text
is encoded, and each token's characters say which parts it belongs to.

What follows a soft prompt begins a text: vectors have no characters to be joined with.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from sordino.errors import ModelError

Span = tuple[int, int]


class Encoder(Protocol):
    """What is needed of a base model."""

    @property
    def encoder_decoder(self) -> object | None: ...

    def encode(self, text: str, /) -> list[int]: ...

    def encode_spans(self, text: str, /, *, markup: bool) -> tuple[list[int], list[Span] | None]: ...


@dataclass(frozen=True)
class Joined:
    """ids: of the whole text, without BOS. parts: for each token, the range [first, end) of parts that it has characters of."""

    ids: tuple[int, ...]
    parts: tuple[Span, ...]

    def touches(self, chosen: Collection[int]) -> tuple[bool, ...]:
        """Which tokens have characters of the chosen parts. A token across a join touches both sides."""
        return tuple(any(part in chosen for part in range(*span)) for span in self.parts)

    def begin(self, part: int) -> int:
        """The index of the first token that has characters of `part` or of a later one."""
        return next((at for at, (_, end) in enumerate(self.parts) if end > part), len(self.ids))


def join(base: Encoder, parts: Sequence[str], *, markup: bool = False) -> Joined:
    """Encode `parts` as one text. markup: it contains special tokens, as a rendered chat template does.

    Raises BadInput for text that is not Unicode, and ModelError where a token crosses a join and the tokenizer does not give the
    characters of its tokens.
    """
    text, ends = "".join(parts), list(accumulate(map(len, parts)))
    ids, spans = base.encode_spans(text, markup=markup)
    if spans is None:
        return Joined(tuple(ids), tuple(_by_beginnings(base, text, ends, ids, markup=markup)))
    last = len(text) - 1

    def part_of(character: int) -> int:
        return bisect_right(ends, min(character, last))

    return Joined(tuple(ids), tuple((part_of(start), part_of(max(start, end - 1)) + 1) for start, end in spans))


def join_answer(base: Encoder, before: Sequence[str], answer: str) -> Joined:
    """Encode texts and the answer to them as one text; an encoder-decoder writes the answer as a text of its own."""
    if base.encoder_decoder is None:
        return join(base, (*before, answer))
    read, written = join(base, before), output_ids(base, answer)
    return Joined((*read.ids, *written), (*read.parts, *[(len(before), len(before) + 1)] * len(written)))


def output_ids(base: Encoder, text: str) -> list[int]:
    """What an encoder-decoder writes. A space in front, which joins a completion to its prompt, joins nothing here."""
    return base.encode(text.lstrip(" "))


def shared_beginning(several: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all of them share."""
    columns = zip(*several, strict=False)
    return next((at for at, column in enumerate(columns) if len(set(column)) > 1), min(map(len, several)))


def _by_beginnings(base: Encoder, text: str, ends: Sequence[int], ids: list[int], *, markup: bool) -> list[Span]:
    """The parts of each token without its characters: a join is where the encoding of everything before it ends."""
    borders: list[int] = []
    for end in ends:
        head = ids if end == len(text) else base.encode_spans(text[:end], markup=markup)[0]
        if ids[: len(head)] != head:
            raise ModelError(
                "a token crosses a join, and the model's tokenizer does not give the characters of its tokens",
                where=f"{text[max(0, end - 20) : end]!r} + {text[end : end + 20]!r}",
                do="move the white space at the end of the prompt to the beginning of the completion, "
                "or choose a model with a tokenizer.json",
            )
        borders.append(len(head))
    return [(bisect_right(borders, at), bisect_right(borders, at) + 1) for at in range(len(ids))]
