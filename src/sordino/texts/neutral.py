"""The packaged neutral texts: other text to stand between a soft prompt and the text that it is for, in many registers; and
openings for a model to continue.

Every third text is kept for measuring: no prompt is trained after it.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

from sordino.texts.pieces import Piece

# Stands between one of these texts, or any other, and the text after it.
BREAK = "\n\n"


def training_texts() -> tuple[Piece, ...]:
    return tuple(text for at, text in enumerate(_texts()) if at % 3 != 2)


def evaluation_texts() -> tuple[Piece, ...]:
    return _texts()[2::3]


@cache
def packaged_openings(kind: Literal["turns", "texts"]) -> tuple[str, ...]:
    """User turns, or beginnings of plain texts; no two are the same."""
    file = resources.files("sordino") / "data" / "openings" / f"{kind}.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())


@cache
def _texts() -> tuple[Piece, ...]:
    """One for each register, in the order of their names."""
    folder = resources.files("sordino") / "data" / "contexts"
    # The corpus has a README too.
    files = sorted((file for file in folder.iterdir() if file.name[0].isdigit()), key=lambda file: file.name)
    return tuple(Piece(file.name, "text", file.read_text(encoding="utf-8")) for file in files)
