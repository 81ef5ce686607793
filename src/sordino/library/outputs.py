"""Files that a command will write: whether they can be, looked at before hours of computing."""

from __future__ import annotations

import os
from pathlib import Path

from sordino.errors import BadInput
from sordino.library.names import MIXTURE_ENDING, checked_name, is_mixture_name, without_ending


def check_new(path: Path | None, *, overwrite: bool) -> None:
    """Raise BadInput where a file would be replaced without leave, is a folder, or has no folder to be in."""
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
    """As `check_new`, for a mixture's file: the name that it has in a library."""
    if not is_mixture_name(path.name):
        raise BadInput("the name of a mixture's file", where="--out", expected=f"NAME{MIXTURE_ENDING}", got=path.name)
    name = checked_name(without_ending(path.name))
    check_new(path, overwrite=overwrite)
    return name


def check_folder(path: Path) -> None:
    """Raise BadInput where a folder of results cannot be made."""
    if path.exists() and not path.is_dir():
        raise BadInput("this is a file", where="--out-dir", expected="a folder", got=path)
    if not path.resolve().parent.is_dir():
        raise BadInput("the folder does not exist", where="--out-dir", got=path.resolve().parent, do="make it first")


def check_picture(path: Path | None, *, overwrite: bool) -> None:
    """As `check_new`, for a picture, whose ending says its kind."""
    if path is not None:
        from sordino.library.endings import checked_ending

        check_new(checked_ending(path), overwrite=overwrite)
