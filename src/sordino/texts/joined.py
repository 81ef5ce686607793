"""Texts that stand one after another, encoded as the one text that they are.

A tokenizer looks across a join. Those of Llama 2's kind mark the first word of a text, BPE merges characters on both sides, and
a special token may take the white space behind it. Parts that are encoded alone therefore give tokens that the whole text does
not have. Here the whole text is encoded, and each token's characters say which parts it belongs to.

What stands behind a soft prompt begins a text: vectors have no characters to be joined with.
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

    def encode_spans(self, text: str, /, *, markup: bool) -> tuple[list[int], list[Span] | None]: ...


@dataclass(frozen=True)
class Joined:
    """ids: of the whole text, without BOS. parts: for each token the range [first, end) of the parts it has characters of."""

    ids: tuple[int, ...]
    parts: tuple[Span, ...]

    def touches(self, chosen: Collection[int]) -> tuple[bool, ...]:
        """Which tokens have characters of the chosen parts. A token across a join touches both sides."""
        return tuple(any(part in chosen for part in range(*span)) for span in self.parts)

    def begin(self, part: int) -> int:
        """The index of the first token that has characters of `part` or of a later one."""
        return next((at for at, (_, end) in enumerate(self.parts) if end > part), len(self.ids))


def join(base: Encoder, parts: Sequence[str], *, markup: bool = False) -> Joined:
    """Encode `parts` as one text. markup: special tokens in it are special tokens, as in a rendered chat template.

    Raises BadInput for what is not Unicode, and ModelError where a token crosses a join and the tokenizer does not say which
    characters a token was read from.
    """
    text, ends = "".join(parts), list(accumulate(map(len, parts)))
    ids, spans = base.encode_spans(text, markup=markup)
    if spans is None:
        return Joined(tuple(ids), tuple(_by_beginnings(base, text, ends, ids, markup=markup)))
    last = len(text) - 1

    def part_of(character: int) -> int:
        return bisect_right(ends, min(character, last))

    return Joined(tuple(ids), tuple((part_of(start), part_of(max(start, end - 1)) + 1) for start, end in spans))


def shared_beginning(several: Sequence[Sequence[int]]) -> int:
    """How many first tokens all of them have in common."""
    columns = zip(*several, strict=False)
    return next((at for at, column in enumerate(columns) if len(set(column)) > 1), min(map(len, several)))


def _by_beginnings(base: Encoder, text: str, ends: Sequence[int], ids: list[int], *, markup: bool) -> list[Span]:
    """The parts of each token where the tokenizer gives no characters: a join is where the encoding of all before it ends."""
    borders: list[int] = []
    for end in ends:
        head = ids if end == len(text) else base.encode_spans(text[:end], markup=markup)[0]
        if ids[: len(head)] != head:
            raise ModelError(
                "the model's tokenizer does not say which characters a token stands for, and one stands across a join",
                where=f"{text[max(0, end - 20) : end]!r} + {text[end : end + 20]!r}",
                do="move the white space at the end of the prompt to the beginning of the completion, "
                "or choose a model with a tokenizer.json",
            )
        borders.append(len(head))
    return [(bisect_right(borders, at), bisect_right(borders, at) + 1) for at in range(len(ids))]
