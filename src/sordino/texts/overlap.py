"""Near-duplicates across the three sets: how much of a held-out text is in the training texts.

Texts are compared by hashes of their runs of eight words (shingles), without case and punctuation. Eight words in a row rarely
agree by chance, and quotations, copies and new editions share most of them.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from sordino.texts.pieces import Piece, digest

RUN = 8
SHARE = 0.2  # of a piece's runs: beyond it is a copy, a quotation or the same template
MANY = 50  # shared runs that count whatever the share: a chapter inside a novel
COMMON = 0.05  # of all pieces: a run that more of them hold is a template
KEPT_RUNS = 4_000_000  # of the training texts; of more, a sample by hash, the same on both sides
MOST_RUNS = 2 * KEPT_RUNS  # of all texts, in memory: of more, the sample is taken at once
_CHARACTERS_A_WORD = 6
SHOWN = 5

Runs = NDArray[np.uint64]


def word_runs(text: str, *, every: int = 1) -> Runs:
    """Sorted hashes of the runs of eight words; of a shorter text, one hash of all of it. every: those that it divides."""
    words = re.finditer(r"\w+", text.casefold())
    codes = np.fromiter((zlib.crc32(word[0].encode()) for word in words), np.uint64)
    if not len(codes):
        return codes
    run = min(RUN, len(codes))
    total = np.zeros(len(codes) - run + 1, np.uint64)
    for i in range(run):
        total = (total ^ codes[i : i + len(total)]) * np.uint64(0x9E3779B97F4A7C15)
        total ^= total >> np.uint64(29)
    return np.unique(total if every == 1 else total[total % np.uint64(every) == 0])


@dataclass(frozen=True)
class _Compared:
    """Pieces with the hashes of their runs, or of those that `every` divides."""

    pieces: Sequence[Piece]
    runs: list[Runs]
    every: int


def overlap_lines(train: Sequence[Piece], validation: Sequence[Piece], heldout: Sequence[Piece]) -> list[str]:
    """For each pair of sets that share text, a summary line and the worst cases."""
    characters = sum(piece.size for pieces in (train, validation, heldout) for piece in pieces)
    every = 1 + characters // (_CHARACTERS_A_WORD * MOST_RUNS)
    sets = [[word_runs(piece.words, every=every) for piece in pieces] for pieces in (train, validation, heldout)]
    template = _common(list(chain.from_iterable(sets)))
    learned, steering, judging = (
        _Compared(pieces, [some[~np.isin(some, template)] for some in runs], every)
        for pieces, runs in zip((train, validation, heldout), sets, strict=True)
    )
    return [
        *_lines(_shared(learned, judging), "held-out", "the training texts", len(heldout)),
        *_lines(_shared(learned, steering), "validation", "the training texts", len(validation)),
        *_lines(_shared(steering, judging), "held-out", "the validation texts", len(heldout)),
    ]


def _common(runs: list[Runs]) -> Runs:
    """Runs that are in so many pieces that they are a template or a system prompt."""
    every, counts = np.unique(np.concatenate(runs), return_counts=True)
    return every[counts > max(4, COMMON * len(runs))]


def _lines(found: list[tuple[float, str, str]], what: str, source: str, total: int) -> list[str]:
    if not found:
        return []
    lines = [
        f"{what}: {len(found)} of {total} pieces share runs of {RUN} words with {source}, which flatters their loss"
    ]
    lines += [f"{what}: {share:.0%} of {name} is also in {twin}" for share, name, twin in found[:SHOWN]]
    return lines + ([f"{what}: and {len(found) - SHOWN} more"] if len(found) > SHOWN else [])


def _shared(known: _Compared, others: _Compared) -> list[tuple[float, str, str]]:
    """(share of the piece's runs that are known, its name, the known piece with most of them), largest share first."""
    every = np.uint64(known.every if known.every > 1 else 1 + sum(map(len, known.runs)) // KEPT_RUNS)
    sampled = [runs[runs % every == 0] for runs in known.runs]
    owners = np.repeat(np.arange(len(sampled)), [len(runs) for runs in sampled])
    keys = np.concatenate([*sampled, np.empty(0, np.uint64)])
    order = np.argsort(keys, kind="stable")
    keys, owners = keys[order], owners[order]
    found = []
    for piece, runs in zip(others.pieces, others.runs, strict=True):
        own = runs[runs % every == 0]
        first, last = np.searchsorted(keys, own, "left"), np.searchsorted(keys, own, "right")
        shared = int((last > first).sum())
        if len(first) and (shared >= SHARE * len(first) or shared * int(every) >= MANY):
            twins = np.concatenate([owners[a:b] for a, b in zip(first, last, strict=True)])
            twin = known.pieces[int(np.bincount(twins).argmax())].name
            found.append((shared / len(first), piece.name, twin))
    return sorted(found, key=lambda case: (-case[0], case[1]))


def repeated(pieces: Sequence[Piece]) -> int:
    """How many pieces are exact copies of an earlier one."""
    return sum(count - 1 for count in Counter(map(digest, pieces)).values())
