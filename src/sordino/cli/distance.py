"""Gains after other text: the options that ask for them, and what is shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.console import out, show_table
from sordino.cli.options import PATH, Decorator, option_group, paths_option, refuse_alone
from sordino.errors import ConfigError
from sordino.evaluation.config import DISTANCES, ContinuationConfig, DistanceConfig
from sordino.library.outputs import Outputs

if TYPE_CHECKING:
    from sordino.evaluation.continuations import ContinuationReport
    from sordino.evaluation.distance_report import DistanceReport

_DEFAULT = ",".join(map(str, DISTANCES))


@dataclass(frozen=True)
class DistanceChoice:
    """As typed. distances: None where gains after other text were not asked for. foreign: empty for packaged texts."""

    distances: str | None
    distance_tokens: int | None
    foreign: tuple[Path, ...]
    lora: tuple[Path, ...]
    picture: Path | None
    overwrite: bool
    continuations: int | None

    def check(self) -> None:
        """Refuse options without --distance, files that cannot be written and adapters that cannot be read.

        Raises ConfigError, BadInput.
        """
        Outputs(picture=self.picture, overwrite=self.overwrite).check()
        if self.picture is None:
            refuse_alone("--overwrite", needs="--picture")
        if self._config() is None:
            for flag in ("--distance-tokens", "--foreign", "--lora", "--picture"):
                refuse_alone(flag, needs="--distance")
            return
        from sordino.evaluation.adapters import check_adapter

        for folder in self.lora:
            check_adapter(folder)

    def _config(self) -> DistanceConfig | None:
        if self.distances is None:
            return None
        limit: dict[str, Any] = {} if self.distance_tokens is None else {"limit": self.distance_tokens}
        return DistanceConfig(distances=_lengths(self.distances), adapters=self.lora, **limit)

    def read(self) -> DistanceConfig | None:
        """With the texts in other voices, read. Raises DataError, BadInput."""
        config = self._config()
        if config is None or not self.foreign:
            return config
        from sordino.texts.reading import read_pieces

        return replace(config, foreign=read_pieces(list(self.foreign)).pieces)

    def written(self) -> ContinuationConfig | None:
        """Raises ConfigError."""
        return None if self.continuations is None else ContinuationConfig(self.continuations)


def distance_options() -> Decorator:
    """`distance: DistanceChoice`."""
    return option_group(
        "distance",
        DistanceChoice,
        click.option(
            "--distance",
            "distances",
            metavar="N,N,...",
            help="Also measure how much of the gains is left when so many tokens of other text stand in between: other texts, "
            f"the same voice, the model's own writing. {_DEFAULT} takes two minutes on two cores.",
        ),
        click.option(
            "--distance-tokens", type=int, metavar="N", help="With --distance: tokens measured at each.  [default: 768]"
        ),
        paths_option("--foreign", "foreign", "With --distance: other texts.  [default: packaged ones]"),
        click.option(
            "--lora",
            multiple=True,
            type=PATH,
            metavar="FOLDER",
            help="With --distance: a LoRA adapter of PEFT to compare with; may be repeated. Needs sordino[bench].",
        ),
        click.option(
            "--picture", type=PATH, metavar="FILE", help="With --distance: the gains as a picture, .png or .svg."
        ),
        click.option("--overwrite", is_flag=True, help="Replace the picture if it exists."),
        click.option(
            "--continuations",
            type=int,
            metavar="N",
            help="Also write N continuations after 256 tokens of other text, held and not: do they repeat themselves? 64 are "
            "enough, and take minutes.",
        ),
    )


def _lengths(text: str) -> tuple[int, ...]:
    """The numbers in "64,256", and 0, at which the gain is that others are compared with."""
    try:
        lengths = {int(part) for part in text.split(",")}
    except ValueError:
        raise ConfigError("not a list of distances", where="--distance", expected=_DEFAULT, got=text) from None
    return tuple(sorted({0, *lengths}))


def show_distance(report: DistanceReport) -> None:
    """The table, and what it shows."""
    from sordino.evaluation.distance_report import columns, explanation, rows

    show_table(columns(report), rows(report), title="Gain after other text")
    for line in explanation(report):
        out.print(line)
    out.print()


def show_continuations(report: ContinuationReport) -> None:
    """The table, and what it shows."""
    from sordino.evaluation.continuations import COLUMNS, explanation, rows

    show_table(COLUMNS, rows(report), title="What the model writes after other text")
    for line in explanation(report):
        out.print(line)
    out.print()
