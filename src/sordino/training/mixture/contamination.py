"""Contamination: components that were trained on a mixture's held-out texts, as far as their files can show.

The file of a soft prompt that Sordino trained holds the seed of its split and the hash of its training data (train and
validation). Split the mixture's texts, all or one path of them, by that seed: where the hash agrees, the component's training
data is known. Nothing is known of soft prompts trained on other texts, or of files without these entries.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path

from sordino.errors import DataError
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.texts.overlap import overlap_lines
from sordino.texts.pieces import Piece, data_hash, digest
from sordino.texts.splits import split_pieces
from sordino.training.config import TextPaths
from sordino.training.reading import read_sample


def contaminated_components(
    prompts: Sequence[tuple[str, SinglePrompt]],
    texts: TextPaths,
    heldout: Sequence[Piece],
    seed: int,
    *,
    ends: Collection[str] = (),
) -> list[str]:
    """A line for each component (label, prompt) that was trained on held-out texts. seed: of the mixture's own split.
    ends: the base model's end markers.
    """

    @cache
    def pieces_of(part: Sequence[Path], seed: int) -> Sequence[Piece]:
        return read_sample(texts, part, ends, seed).pieces

    judged = set(map(digest, heldout))
    lines = []
    for label, prompt in prompts:
        hash_of_data, own = prompt.metadata.training.get("data_hash"), prompt.metadata.training.get("seed")
        # A sweep's split has a seed of its own, by default 0.
        seeds = dict.fromkeys(s for s in (own, 0) if type(s) is int and s >= 0)
        for learned in (
            found for part in _parts(texts.data) for s in seeds for found in _learned(pieces_of(part, s), s)
        ):
            if data_hash(learned) != hash_of_data:
                continue
            # Whole pieces first: what a file has often is no sign of a copy to `overlap_lines`.
            if judged & set(map(digest, learned)) or overlap_lines(learned, (), heldout):
                lines.append(
                    f"{label} was trained on texts that are held out here, under seed {seed}, as its own split had another "
                    f"(its file says seed {own}): its held-out loss and the mixture's are flattered; give --heldout texts that "
                    "no component has seen, or the --seed that the components were trained with"
                )
            break
    return lines


def _parts(paths: tuple[Path, ...]) -> Iterator[tuple[Path, ...]]:
    yield paths
    if len(paths) > 1:
        yield from ((path,) for path in paths)


def _learned(pieces: Sequence[Piece], seed: int) -> Iterator[tuple[Piece, ...]]:
    """The pieces that a run of this seed is trained and validated on."""
    try:
        splits = split_pieces(pieces, heldout=None, seed=seed)
    except DataError:
        return
    yield splits.train + splits.validation
    # With --heldout, all of the texts are trained or validated on.
    yield tuple(pieces)
