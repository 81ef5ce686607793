"""The texts of a run: where they are, as its folder says; read, or a sample of them by the seed; and split into three sets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sordino.settings import settings_of
from sordino.texts.reading import Reading, read_pieces
from sordino.texts.sampling import SampleSize
from sordino.texts.splits import Splits, split_pieces
from sordino.training.config import ReadingConfig, TextPaths
from sordino.training.events import OnEvent, Working, nobody, working


def texts_to_store(texts: TextPaths) -> dict[str, Any]:
    """What a run's folder says of them, with absolute paths."""
    return {
        "data": [str(path.resolve()) for path in texts.data],
        "heldout": [str(path.resolve()) for path in texts.heldout],
        "speaker": texts.speaker,
        "most_text": texts.most_text,
    }


def stored_texts(stored: Mapping[str, Any]) -> TextPaths:
    """From what a run's folder says. Raises KeyError, TypeError."""
    # Older versions read everything, and do not say so.
    most = stored.get("most_text", settings_of(ReadingConfig)["most_text"].about.high)
    return TextPaths(
        tuple(map(Path, stored["data"])), tuple(map(Path, stored["heldout"])), stored["speaker"], int(most)
    )


def read_sample(
    texts: TextPaths, paths: Sequence[Path], ends: Collection[str], seed: int, on_event: OnEvent = nobody
) -> Reading:
    """All of `paths`, or a sample by the seed. ends: the base model's end markers. Raises as `read_pieces`."""
    return read_pieces(
        paths,
        speaker=texts.speaker,
        ends=ends,
        sample=SampleSize(texts.most_text * 1_000_000, seed),
        progress=working("Reading the texts", on_event),
    )


def read_split(
    texts: TextPaths, ends: Collection[str], seed: int, on_event: OnEvent = nobody
) -> tuple[Splits, tuple[str, ...]]:
    """The three sets, and notes for the user about what was read. Raises DataError, MissingExtra."""
    reading = read_sample(texts, texts.data, ends, seed, on_event)
    held = read_sample(texts, texts.heldout, ends, seed, on_event) if texts.heldout else None
    on_event(Working("Splitting the texts"))
    splits = split_pieces(reading.pieces, heldout=held.pieces if held else None, seed=seed)
    return splits, (*reading.notes, *(held.notes if held else ()))
