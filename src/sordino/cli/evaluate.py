"""evaluate: what a soft prompt does for texts that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.console import one_line, out, print_json, show_measured, show_picture
from sordino.cli.loading import ModelChoice, PromptChoice, TextChoice, heldout_option, measured_options, text_options
from sordino.cli.options import instruction_option, paths_option, refuse_alone, setting_options
from sordino.cli.progress import measuring_bar
from sordino.errors import ConfigError
from sordino.evaluation.config import DISTANCES, ContinuationConfig, DistanceConfig, EvaluateConfig
from sordino.library.outputs import Outputs
from sordino.prompts.mixture import with_components
from sordino.settings import setting

if TYPE_CHECKING:
    from sordino.evaluation.report import Report


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


@click.command()
@text_options(
    heldout_option("Texts that were not trained on; may be repeated.", required=True),
    paths_option("--excerpts", "training", "The training texts, to compare with real excerpts of them."),
    paths_option("--off-domain", "off_domain", "Texts in another voice, to see the damage.  [default: a packaged one]"),
    instruction_option("made from the description, where there is one"),
)
@setting_options(EvaluateConfig, "limit", "row_tokens", "excerpt_draws", "pass_tokens", "seed", given_as="config")
@distance_options
@click.option("--components", is_flag=True, help="Measure each component of a mixture too.")
@measured_options()
def evaluate(
    prompts: PromptChoice,
    texts: TextChoice,
    config: EvaluateConfig,
    distance: DistanceChoice,
    components: bool,
    model: ModelChoice,
    as_json: bool,
) -> None:
    """Measure soft prompts on held-out texts: do they help, and how much real text are they worth?

    The same tokens are predicted after each soft prompt, without one, after instructions, and after excerpts of the training
    texts. A text in another voice shows what the soft prompt costs elsewhere. --distance shows how far a soft prompt reaches.
    """
    distance.check()
    if not texts.training:
        refuse_alone("--excerpt-draws", needs="--excerpts")
    loaded = prompts.load_any()
    if components:
        loaded = with_components(loaded)
    held = texts.read()
    config = replace(config, distance=distance.read(), continuations=distance.written())
    from sordino.evaluation.off_domain import packaged_text
    from sordino.texts.reading import read_pieces

    if not texts.off_domain:
        other = packaged_text(loaded.values(), held.pieces)
    else:
        other = ", ".join(path.name for path in texts.off_domain), read_pieces(list(texts.off_domain)).pieces
    base = prompts.load_model(
        model, loaded, only_decoders="the effect at a distance" if config.distance is not None else None
    )
    from sordino.evaluation.conditions import Baselines
    from sordino.evaluation.measuring import evaluate as measure
    from sordino.evaluation.report import to_json

    with measuring_bar() as progress:
        report = measure(
            base,
            loaded,
            held.pieces,
            config,
            baselines=Baselines(texts.instructions, held.training),
            off_domain=other,
            progress=progress,
        )
    if distance.picture is not None and report.distance is not None:
        from sordino.evaluation.pictures import distance_figure

        show_picture(distance_figure(report.distance), distance.picture)
    if as_json:
        print_json({"model": base.name, "row_tokens": config.row_tokens, "seed": config.seed, **to_json(report)})
    else:
        show_report(report, config.row_tokens)


def show_report(report: Report, row_tokens: int) -> None:
    """The table, what its columns mean, and a verdict for each soft prompt."""
    from sordino.evaluation import continuations, distance_report
    from sordino.evaluation.tables import heldout_table
    from sordino.evaluation.verdict import damage, explanation, verdict

    first = next(iter(report.n_tokens))
    show_measured(heldout_table(report.heldout, first), explanation(report.heldout, one_line(first), row_tokens))
    if report.distance is not None:
        show_measured(distance_report.table(report.distance), distance_report.explanation(report.distance))
    if report.continuations is not None:
        show_measured(continuations.table(report.continuations), continuations.explanation(report.continuations))
    for label in report.n_tokens:
        named = f"{one_line(label)}: " if len(report.n_tokens) > 1 else ""
        out.print(named + verdict(report, label), style="bold")
        if lost := damage(report, label):
            out.print(named + lost)
    for note in report.notes:
        out.print(f"Note: {one_line(note)}.")
