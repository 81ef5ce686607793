"""Options of the commands that train: the texts, resuming, and dry runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sordino.cli.loading import heldout_option
from sordino.cli.options import PATH, Decorator, option_group, setting_option
from sordino.errors import BadInput, ConfigError
from sordino.settings import settings_of
from sordino.training.config import ReadingConfig, TextPaths
from sordino.training.failure import recorded

# The help of `train`: what most people need comes first.
_SECTIONS = {
    "Files": ("out", "overwrite", "heldout", "speaker", "most_text"),
    "Soft prompt": ("kind", "tokens", "hold", "init", "method", "placement"),
    "Length of the run": ("minutes", "steps", "patience", "resume", "dry_run"),
    "Learning": (
        *("recipe", "lr", "find_lr", "batch", "row_tokens", "context", "answers", "objective", "optimiser"),
        *("warmup", "clip", "weight_decay", "average", "seed"),
    ),
    "Samples and measurement": ("evaluate_every", "sample_every", "sample_text", "measure"),
    "About the soft prompt": ("name", "author", "description", "licence", "tags", "rating", "no_samples"),
    "Base model and machine": ("model", "device", "dtype", "quantise", "offload", "pass_tokens", "processes", "shard"),
    "Several soft prompts": ("prompts", "out_dir"),
}


class TrainCommand(click.Command):
    """Its help has sections. A wrong flag is recorded as the run's failure too, for the page that gave it."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        records = {one.name: record for one in options if (record := one.get_help_record(ctx))}
        sections = {title: [records.pop(name) for name in names] for title, names in _SECTIONS.items()}
        for title, lines in {**sections, "Other": [*records.values()]}.items():
            with formatter.section(title):
                formatter.write_dl(lines)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            flag = error.param.opts[0] if isinstance(error, click.BadParameter) and error.param is not None else ""
            # Until all is parsed, what was not given is a sentinel of click's.
            given = ctx.params.get("error_file")
            try:
                with recorded(given if isinstance(given, Path) else None):
                    raise ConfigError(error.message, where=flag)
            except ConfigError:
                # click shows it, with the usage.
                raise error from None


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
