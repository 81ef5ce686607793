"""Checks of the files that a command will write, made before hours of computing."""

from __future__ import annotations

import os
from pathlib import Path

from sordino.errors import BadInput
from sordino.library.names import MIXTURE_ENDING, checked_name, is_mixture_name, without_ending

PICTURE_ENDINGS = (".png", ".svg")


def check_new(path: Path | None, *, overwrite: bool) -> None:
    """Raise BadInput where the path is a folder, is in none, or is a file that may not be replaced."""
    if path is None:
        return
    if not path.resolve().parent.is_dir():
        raise BadInput("the folder does not exist", where=path.parent, do="make it first")
    if path.is_dir():
        raise BadInput("this is a folder", where=path, expected="a file name")
    if os.path.lexists(path) and not overwrite:
        raise BadInput(
            "there is a file of this name", where=path, do="replace it with --overwrite, or choose another name"
        )


def mixture_name(path: Path, *, overwrite: bool) -> str:
    """As `check_new`, for a mixture's file. Returns its name in a library."""
    if not is_mixture_name(path.name):
        raise BadInput(
            "not the name of a mixture's file", where="--out", expected=f"NAME{MIXTURE_ENDING}", got=path.name
        )
    name = checked_name(without_ending(path.name))
    check_new(path, overwrite=overwrite)
    return name


def check_folder(path: Path) -> None:
    """Raise BadInput where a folder for results cannot be made."""
    if path.exists() and not path.is_dir():
        raise BadInput("this is a file", where="--out-dir", expected="a folder", got=path)
    if not path.resolve().parent.is_dir():
        raise BadInput("the folder does not exist", where="--out-dir", got=path.resolve().parent, do="make it first")


def check_picture(path: Path | None, *, overwrite: bool) -> None:
    """As `check_new`, for a picture, whose ending is its format."""
    if path is not None and path.suffix.lower() not in PICTURE_ENDINGS:
        expected = " or ".join(PICTURE_ENDINGS)
        raise BadInput("not a kind of picture", where=path, expected=expected, got=path.suffix or "no ending")
    check_new(path, overwrite=overwrite)
