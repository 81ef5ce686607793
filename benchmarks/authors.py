"""Who wrote this passage, Austen or Carroll: a task with two labels for a model that is too small to judge a review.

Passages of about 250 characters, cut between words; as many of each author. Those that are learned from and those that are
measured are of different books.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from sordino.texts.pieces import Piece

AUTHORS = {"Austen": "austen", "Carroll": "carroll"}
CHARACTERS = 250
MOST = 590
# How a printer sets a quotation or an emphasis tells books apart, and is not the author's.
_PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "_": "", "*": ""})


def author_rows(data: Path, part: str) -> list[Piece]:
    """data: a folder with a folder for each author. part: "train" or "heldout". The order is always the same."""
    found = {author: list(_passages(data / folder / part)) for author, folder in AUTHORS.items()}
    shuffled = random.Random(0)
    rows = []
    count = min(MOST, *map(len, found.values()))
    for author, passages in found.items():
        rows += [
            Piece(f"{author} {number}", "completion", f" {author}", prompt=f"Text: {passage}\nAuthor:")
            for number, passage in enumerate(shuffled.sample(passages, count))
        ]
    shuffled.shuffle(rows)
    return rows


def _passages(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.txt")):
        text = " ".join(path.read_text(encoding="utf-8").translate(_PLAIN).split())
        begin = 0
        while len(text) - begin > CHARACTERS:
            end = text.rfind(" ", begin, begin + CHARACTERS)
            yield text[begin:end]
            begin = end + 1
