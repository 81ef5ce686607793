"""Sordino from Python: what `import sordino` offers, on the functions that the command line and the page call.

Nothing here loads PyTorch until something computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from sordino.errors import BadInput, SordinoError

if TYPE_CHECKING:
    from sordino.prompts.mixture import StoredPrompt

P = ParamSpec("P")
R = TypeVar("R")
Paths = str | Path | Sequence[str | Path]


def as_paths(given: Paths) -> list[Path]:
    return [Path(path) for path in ([given] if isinstance(given, str | Path) else given)]


def checked_prompt(given: Any) -> StoredPrompt:
    """A soft prompt or a mixture, and not the name or the path of one. Raises BadInput."""
    from sordino.prompts.kv_prompt import KVPrompt
    from sordino.prompts.mixture import Mixture
    from sordino.prompts.soft_prompt import SoftPrompt

    if isinstance(given, SoftPrompt | KVPrompt | Mixture):
        return given
    raise BadInput("not a soft prompt", where="prompt", got=repr(given)[:80], do="sordino.load(NAME_OR_PATH) reads one")


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
