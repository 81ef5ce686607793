"""A base model and the soft prompts that go with it, for commands that use both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sordino.cli.console import err, is_interactive, one_line, warn
from sordino.errors import ConfigError
from sordino.library.names import MIXTURE_ENDING
from sordino.prompts.mixture import Mixture, StoredPrompt
from sordino.prompts.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from sordino.library.library import Library
    from sordino.models.base_model import BaseModel


def loaded_prompts(library: Library, names: Sequence[str]) -> dict[str, SoftPrompt]:
    """Soft prompts by a short label each, in the order given. names: of the library, or paths. Raises BadInput.

    Done before the base model is loaded: a wrong name should not cost seconds.
    """
    from sordino import formats

    return {label: formats.read(path) for label, path in _paths(library, names).items()}


def loaded_voices(library: Library, names: Sequence[str]) -> dict[str, StoredPrompt]:
    """As `loaded_prompts`, mixtures among them."""
    from sordino import formats

    return {label: formats.read_any(path) for label, path in _paths(library, names).items()}


def _paths(library: Library, names: Sequence[str]) -> dict[str, Path]:
    if len(set(names)) < len(names):
        raise ConfigError("a soft prompt was given twice", got=", ".join(names))
    files = [Path(Path(name).name.removesuffix(MIXTURE_ENDING)) for name in names]
    labels = [one_line(file.stem if file.suffix else file.name) for file in files]
    if len(set(labels)) < len(labels):
        # Numbers, not paths: labels are written into mixtures, which are shared.
        labels = [f"{label} ({number})" for number, label in enumerate(labels, start=1)]
    return {label: library.resolve(name) for label, name in zip(labels, names, strict=True)}


def loaded_model(model: str, dtype: str | None, device: str | None, *, ask: bool = True) -> BaseModel:
    """The base model, loaded while the terminal says so. A .gguf file's conversion is announced, and asked for, first."""
    if ask:
        _ask_to_convert(model)
    with err.status(f"Loading {one_line(model)} ..."):
        # Importing it, too, takes seconds.
        from sordino.models import base_model

        base = base_model.load(model, dtype=dtype, device=device, tell=lambda line: err.print(one_line(line)))
    from sordino.forward.nll import head_of
    from sordino.forward.prefix import packable

    if not packable(base.network):
        # Tries it.
        head_of(base.network)
        warn(f"{base.family} models are not among those that are tested: tried and found right, but run one text a row")
    return base


def _ask_to_convert(model: str) -> None:
    from sordino.models import files

    needed = files.conversion_of(files.resolve(model))
    if needed is None:
        return
    err.print(
        f"{one_line(model)} is quantised, and PyTorch runs it as float32: {_gigabytes(needed.disk)} of the disk once and "
        f"of memory at every run, {_gigabytes(needed.memory)} of memory while it is converted."
    )
    if is_interactive():
        click.confirm("Convert it?", default=True, abort=True, err=True)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def check_fits(base: BaseModel, label: str, prompt: StoredPrompt, *, force: bool) -> None:
    """Refuse a soft prompt, or a mixture with one, that was not made for this model (DoesNotFit); say so where nobody can know."""
    parts = prompt.components if isinstance(prompt, Mixture) else (prompt,)
    reasons = [
        fit.reason for fit in (base.check_fit(part, force=force) for part in parts) if fit.kind in ("unknown", "no")
    ]
    for reason in dict.fromkeys(reasons):
        warn(f"{label}: {reason}")
