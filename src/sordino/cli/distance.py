"""Gains after other text: the options that ask for them, and what is shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.cli.console import show_table
from sordino.cli.options import refuse_alone, setting_options
from sordino.errors import ConfigError
from sordino.evaluation.config import DISTANCES, ContinuationConfig, DistanceConfig
from sordino.library.outputs import Outputs
from sordino.settings import setting

if TYPE_CHECKING:
    from sordino.evaluation.continuations import ContinuationReport
    from sordino.evaluation.distance_report import DistanceReport

_DEFAULT = ",".join(map(str, DISTANCES))


@dataclass(frozen=True)
class DistanceChoice:
    """As typed. distances: None where gains after other text were not asked for. foreign: empty for packaged texts."""

    distances: str | None = setting(
        None,
        "Also measure how much of the gains is left when so many tokens of other text stand in between: other texts, "
        f"the same voice, the model's own writing. {_DEFAULT} takes two minutes on two cores.",
        unit="N,N,...",
        flag="--distance",
    )
    distance_tokens: int | None = setting(
        None, "With --distance: tokens measured at each.", shown=f"{DistanceConfig.limit}", unit="N"
    )
    foreign: tuple[Path, ...] = setting((), "With --distance: other texts.", shown="packaged ones", unit="PATH")
    lora: tuple[Path, ...] = setting(
        (),
        "With --distance: a LoRA adapter of PEFT to compare with; may be repeated. Needs sordino[bench].",
        unit="FOLDER",
    )
    picture: Path | None = setting(None, "With --distance: the gains as a picture, .png or .svg.", unit="FILE")
    overwrite: bool = setting(False, "Replace the picture if it exists.")
    continuations: int | None = setting(
        None,
        "Also write N continuations after 256 tokens of other text, held and not: do they repeat themselves? 64 are "
        "enough, and take minutes.",
        unit="N",
    )

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


distance_options = setting_options(DistanceChoice, given_as="distance")


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

    show_table(columns(report), rows(report), title="Gain after other text", explanation=explanation(report))


def show_continuations(report: ContinuationReport) -> None:
    """The table, and what it shows."""
    from sordino.evaluation.continuations import COLUMNS, explanation, rows

    show_table(COLUMNS, rows(report), title="What the model writes after other text", explanation=explanation(report))
