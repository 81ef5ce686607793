"""Sordino from Python: what `import sordino` offers, on the functions that the command line and the page call.

Nothing here loads PyTorch until something computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from sordino.errors import SordinoError

P = ParamSpec("P")
R = TypeVar("R")
Paths = str | Path | Sequence[str | Path]


def as_paths(given: Paths) -> list[Path]:
    return [Path(path) for path in ([given] if isinstance(given, str | Path) else given)]


def naming_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """The function, whose errors name its arguments in place of the command's flags."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except SordinoError as error:
            error.name_arguments()
            raise

    return called
