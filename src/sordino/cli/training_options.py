"""Options of the commands that train: the texts, resuming, and dry runs."""

from __future__ import annotations

from pathlib import Path

import click

from sordino.cli.loading import heldout_option
from sordino.cli.options import PATH, Decorator, option_group, setting_option
from sordino.errors import BadInput
from sordino.training.config import ReadingConfig, TextPaths


def training_text_options(data: Decorator | None = None) -> Decorator:
    """`texts: TextPaths`. data: the option `data`; by default the argument DATA."""
    given = data or click.argument("data", nargs=-1, type=PATH)
    source = "--data" if data else "DATA"
    heldout = heldout_option(f"Texts for the final report only; may be repeated.  [default: split off {source}]")
    return option_group("texts", TextPaths, given, heldout, setting_option(ReadingConfig, "speaker"))


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
