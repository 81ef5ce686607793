"""Held-out texts, and the texts that were trained on beside them: read together, with what would make a comparison meaningless."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sordino.errors import BadInput
from sordino.texts.overlap import overlap_lines
from sordino.texts.pieces import Piece
from sordino.texts.reading import read_pieces


@dataclass(frozen=True)
class HeldoutTexts:
    """sets: held-out pieces by name. training: what was trained on. notes, overlaps: lines for the user."""

    sets: Mapping[str, tuple[Piece, ...]]
    training: tuple[Piece, ...]
    notes: tuple[str, ...]
    overlaps: tuple[str, ...]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return tuple(piece for pieces in self.sets.values() for piece in pieces)


def read_heldout(
    heldout: Sequence[Path], training: Sequence[Path] = (), *, speaker: str | None = None, apart: bool = False
) -> HeldoutTexts:
    """Read held-out texts: each path a set of its own where `apart`, else one set of all of them.

    Raises DataError, BadInput (a text that was given twice).
    """
    groups = [[path] for path in heldout] if apart else [list(heldout)] if heldout else []
    names = short_names(heldout) if apart else [", ".join(short_names(heldout))]
    learned = read_pieces(list(training), speaker=speaker) if training else None
    sets: dict[str, tuple[Piece, ...]] = {}
    notes = list(learned.notes) if learned else []
    overlaps: list[str] = []
    for name, paths in zip(names, groups, strict=False):
        reading = read_pieces(paths, speaker=speaker)
        sets[name] = reading.pieces
        notes += reading.notes
        overlaps += overlap_lines(learned.pieces, (), reading.pieces) if learned else ()
    return HeldoutTexts(sets, learned.pieces if learned else (), tuple(notes), tuple(overlaps))


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as it takes to tell them apart. Raises BadInput."""
    if len(set(paths)) < len(paths):
        raise BadInput("a text was given twice", got=", ".join(map(str, paths)))
    longest = max((len(path.parts) for path in paths), default=1)
    for count in range(1, longest + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names
