"""`save`, as a method of what a file holds: the one place that reaches up to the formats, when called (docs/decisions/0013)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sordino.errors import SordinoError

if TYPE_CHECKING:
    from sordino.prompts.mixture import StoredPrompt

_log = logging.getLogger(__name__)


def save(prompt: StoredPrompt, path: str | Path, *, to: str = "kobold", overwrite: bool = False) -> None:
    """As `SoftPrompt.save` and `Mixture.save`, which say what a user has to know."""
    from sordino import formats
    from sordino.prompts.mixture import Mixture

    try:
        if not isinstance(prompt, Mixture):
            formats.format_of_name(Path(path), to)
        lines = formats.write_any(prompt, Path(path), to=to, force=overwrite)
    except SordinoError as error:
        error.do = error.do.replace("--force", "--overwrite")
        error.name_arguments()
        raise
    for line in lines:
        _log.warning("%s: %s", path, line)
