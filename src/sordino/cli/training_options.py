"""Options of the commands that train: the texts, resuming, and dry runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sordino.cli.loading import heldout_option
from sordino.cli.options import PATH, Decorator, option_group, setting_option
from sordino.errors import BadInput
from sordino.settings import settings_of
from sordino.training.config import ReadingConfig, TextPaths


def training_text_options(data: Decorator | None = None) -> Decorator:
    """`texts: TextPaths`. data: the option `data`; by default the argument DATA."""
    given = data or click.argument("data", nargs=-1, type=PATH)
    source = "--data" if data else "DATA"
    heldout = heldout_option(f"Texts for the final report only; may be repeated.  [default: split off {source}]")
    reading = [setting_option(ReadingConfig, name) for name in settings_of(ReadingConfig)]
    return option_group("texts", _text_paths, given, heldout, *reading)


def _text_paths(data: tuple[Path, ...], heldout: tuple[Path, ...], **reading: Any) -> TextPaths:
    """Raises ConfigError."""
    given = ReadingConfig(**{name: value for name, value in reading.items() if value is not None})
    return TextPaths(data, heldout, given.speaker, given.most_text)


def resume_option(help: str, *, metavar: str) -> Decorator:
    """`resume: Path | None`."""
    return click.option("--resume", type=PATH, metavar=metavar, help=help)


def dry_run_option(what: str) -> Decorator:
    """`dry_run: bool`."""
    return click.option(
        "--dry-run", is_flag=True, help=f"Read the texts, measure what the {what} would cost, and stop."
    )


def check_exist(*paths: Path, where: str = "") -> None:
    """Raise BadInput where there is no such file or folder: before torch is loaded, as a typing error should not cost seconds."""
    for path in paths:
        if not path.exists():
            raise BadInput("no such file or folder", where=where or path, do="check the spelling")


def check_texts(*paths: Path, where: str = "") -> None:
    """As `check_exist`, and raise DataError for files that are named and cannot be text."""
    from sordino.texts.files import check_text

    check_exist(*paths, where=where)
    for path in paths:
        if not path.is_dir():
            check_text(path)
