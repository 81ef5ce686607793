"""Write what a command makes, and say so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.cli.console import err, warn
from sordino.library.outputs import Outputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sordino.prompts.kv_prompt import SinglePrompt


def write_prompt(outputs: Outputs, prompt: SinglePrompt) -> dict[str, Any]:
    """Write a soft prompt. Returns what it is, for JSON. Raises BadInput for a file that appeared meanwhile, StorageError."""
    warn(*outputs.write(prompt))
    err.print(f"Written: {outputs.target} ({prompt.n_tokens} virtual tokens)")
    return {"path": str(outputs.target), "content_hash": prompt.content_hash, "n_tokens": prompt.n_tokens}


def show_picture(figure: Figure, path: Path) -> None:
    """Write a picture. Raises StorageError."""
    from sordino.evaluation.pictures import write_picture

    write_picture(figure, path)
    err.print(f"Picture: {path}")
