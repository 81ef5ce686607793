"""The kinds of picture, apart from what draws them: a wrong name should not cost the loading of matplotlib."""

from __future__ import annotations

from pathlib import Path

from sordino.errors import BadInput

ENDINGS = (".png", ".svg")


def checked_ending(path: Path) -> Path:
    """Raise BadInput unless a picture can be written by that name."""
    if path.suffix.lower() not in ENDINGS:
        raise BadInput(
            "not a kind of picture", where=path, expected=" or ".join(ENDINGS), got=path.suffix or "no ending"
        )
    return path
