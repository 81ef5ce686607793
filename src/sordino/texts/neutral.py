"""The packaged neutral texts: other text to stand between a soft prompt and the text that it is for, in many registers."""

from __future__ import annotations

from functools import cache
from importlib import resources

from sordino.texts.pieces import Piece


@cache
def neutral_texts() -> tuple[Piece, ...]:
    """One for each register, in the order of their names."""
    folder = resources.files("sordino") / "data" / "contexts"
    # The corpus has a README too.
    files = sorted((file for file in folder.iterdir() if file.name[0].isdigit()), key=lambda file: file.name)
    return tuple(Piece(file.name, "text", file.read_text(encoding="utf-8")) for file in files)
