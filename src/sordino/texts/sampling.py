"""A sample of texts that hold more than a run learns from, drawn while they are read: what is left out is never held.

Each piece draws a number from the seed and its content, and those with the smallest numbers are kept. So a sample depends neither
on the names nor on the order of the files, and one more file moves few of its pieces.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass

from sordino.texts.pieces import Piece


@dataclass(frozen=True)
class SampleSize:
    """characters: the size of the sample, not counting the last piece that is drawn."""

    characters: int
    seed: int


class SampledPieces:
    """The sample of the pieces so far; all of them without a `SampleSize`."""

    def __init__(self, sample: SampleSize | None) -> None:
        self._sample = sample
        # Each piece with its number, negative as the largest leaves first, and its place in the order of reading.
        self._kept: list[tuple[int, int, Piece]] = []
        self._count, self._size, self.characters = 0, 0, 0

    def add(self, piece: Piece) -> None:
        self._count += 1
        self.characters += piece.size
        self._size += piece.size
        number = 0 if self._sample is None else -_number(piece, self._sample.seed)
        own = (number, self._count, piece)
        heapq.heappush(self._kept, own)
        while self._sample is not None and self._size - self._kept[0][2].size >= self._sample.characters:
            last = heapq.heappop(self._kept)
            self._size -= last[2].size
            if last is own:
                return
        piece.pack()

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """In the order of reading."""
        return tuple(piece for _, _, piece in sorted(self._kept, key=lambda kept: kept[1]))

    @property
    def note(self) -> str:
        """A line for the user; "" if nothing was left out."""
        left = self._count - len(self._kept)
        if not left:
            return ""
        return (
            f"a sample by the seed, as there is more text than --most-text: {len(self._kept):,} of {self._count:,} pieces, "
            f"{self._size:,} of {self.characters:,} characters"
        )


def _number(piece: Piece, seed: int) -> int:
    words = f"{piece.kind}\0{piece.prompt}\0{piece.words}"
    key = seed.to_bytes(8, "big")
    return int.from_bytes(
        hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest(), "big"
    )
