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
    """A soft prompt or a mixture from a file or folder of any known format, from your library by its name, or from the Hugging
    Face Hub: `hf:USER/NAME[@REVISION]`.

    index: which one, of a file that holds several. Loads no PyTorch. Raises SoftPromptFileError, NotInLibrary, HubError.
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


@naming_arguments
def push(
    path: str | Path,
    repository: str,
    *,
    private: bool = False,
    licence: str | None = None,
    language: str = "",
    overwrite: bool = False,
) -> str:
    """Publish a soft prompt, a file or a name in your library, on the Hugging Face Hub as USER/NAME. Returns its address.

    Nothing is asked: `sordino push` shows first what will be disclosed. private: of a new repository. licence: in place of the
    file's. language: ISO 639 code of its texts. overwrite: replace a card that somebody edited, and other soft prompts there.
    Raises BadInput, HubError.
    """
    from sordino.library.hub_push import PushSettings, prepared
    from sordino.library.hub_push import push as send

    settings = PushSettings(private=private, licence=licence, language=language, overwrite=overwrite)
    with prepared(_resolved(path), repository, settings) as ready:
        return send(ready).address


def _resolved(path: str | Path) -> Path:
    if os.path.isfile(path):
        return Path(path)
    if str(path).startswith("hf:"):
        from sordino.library.hub import describe, fetch
        from sordino.library.hub_names import parse_reference

        return fetch(describe(parse_reference(str(path))))
    # Opening the default library makes it.
    from sordino.library.library import open_library

    return open_library(()).resolve(str(path))
