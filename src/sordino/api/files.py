"""Soft prompts and mixtures from files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sordino.api import naming_arguments

if TYPE_CHECKING:
    from sordino.formats import Peek
    from sordino.prompts.mixture import StoredPrompt


@naming_arguments
def load(path: str | Path, *, index: int | None = None) -> StoredPrompt:
    """A soft prompt or a mixture from a file or folder of any known format, or from your library by its name.

    index: which one, of a file that holds several. Loads no PyTorch. Raises SoftPromptFileError, NotInLibrary.
    """
    from sordino import formats

    return formats.read_any(_resolved(path), index=index)


@naming_arguments
def peek(path: str | Path) -> Peek:
    """What a file says of itself: `format`, `n_tokens`, `d_model`, `metadata`. Takes what `load` takes.

    Only headers are read: the tensor is not loaded, and no hash is computed. Raises as `load`.
    """
    from sordino import formats

    return formats.peek(_resolved(path))


def _resolved(path: str | Path) -> Path:
    if os.path.isfile(path):
        return Path(path)
    # Opening the default library makes it.
    from sordino.library.library import open_library

    return open_library(()).resolve(str(path))
