"""blend: several soft prompts made into one, and the losses between two measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.console import one_line, out, print_json, show_measured, show_picture, warn, write_prompt
from sordino.cli.loading import ModelChoice, PromptChoice, TextChoice, heldout_option, measured_options, text_options
from sordino.cli.options import output_options, refuse_alone, setting_options
from sordino.cli.progress import measuring_bar
from sordino.errors import BadInput, ConfigError
from sordino.evaluation.config import BlendConfig
from sordino.library.outputs import Outputs
from sordino.prompts.blending import blend as blended

if TYPE_CHECKING:
    from sordino.evaluation.analysis.path import BlendPath

_OF_HELDOUT = ("--points", "--picture", "--speaker", "--limit", "--row-tokens", "--pass-tokens", "--force", "--model",
               "--device", "--dtype", "--quantise", "--offload")  # fmt: skip


@click.command()
@text_options(
    heldout_option("Texts to measure the blends between two soft prompts on; may be repeated, one table line for each.")
)
@setting_options(BlendConfig, given_as="config")
@output_options(
    out="The .zip to write, of KV prompts a .kv.zip; may be left out with --heldout.",
    name="The blend's name.  [default: what it is made of]",
    picture="The losses as a picture, .png or .svg.  [default: beside OUT]",
)
@measured_options(click.argument("names", metavar="PROMPT [WEIGHT] PROMPT [WEIGHT] ...", nargs=-1, required=True))
def blend(
    prompts: PromptChoice, texts: TextChoice, config: BlendConfig, outputs: Outputs, model: ModelChoice, as_json: bool
) -> None:
    """Blend soft prompts into one, and measure the losses between two.

    For instance: sordino blend a.zip 0.7 b.zip 0.3 --out c.zip

    They must be for one base model, stand in the same place, be of one kind and, unless concatenated, of one length: rows are
    paired by position. KV prompts are blended linearly. Weights are scaled to sum to one, and are equal if none is given. The
    file records what it was made of, with the strictest of the ratings.
    """
    names, weights = parted(prompts.names)
    _check_options(names, weights, texts, config, outputs)
    loaded = replace(prompts, names=tuple(names)).load_single()
    made = blended(list(loaded.values()), weights or [1.0] * len(names), config.how)
    result = made.prompt.with_metadata(name=outputs.name) if outputs.name else made.prompt
    if texts.heldout:
        outputs = outputs.with_picture()
    outputs.check(result.kind)
    warn(*made.notes)
    report: dict[str, Any] = {"notes": list(made.notes)}
    if texts.heldout:
        sets = texts.read(apart=True).sets
        base = prompts.load_model(model, loaded)
        also = None if outputs.target is None else weights[1] / sum(weights) if weights else 0.5
        from sordino.evaluation.analysis.path import path_between

        first, second = loaded.values()
        with measuring_bar() as progress:
            path = path_between(base, first, second, sets, config, also=also, progress=progress)
        report["path"] = _shown(path, list(loaded), also, outputs, as_json=as_json)
    if outputs.target is not None:
        report["out"] = write_prompt(outputs, result)
    if as_json:
        print_json(report)


def _check_options(
    names: Sequence[str], weights: Sequence[float], texts: TextChoice, config: BlendConfig, outputs: Outputs
) -> None:
    if not texts.heldout:
        for flag in _OF_HELDOUT:
            refuse_alone(flag, needs="--heldout")
        if outputs.target is None:
            raise ConfigError("there is nothing to do", where="blend", do="give --out, --heldout or both")
    if outputs.target is None:
        refuse_alone("--name", needs="--out")
    if config.how == "concatenate" and weights:
        raise ConfigError("a concatenation has no weights", where="--how", do="leave them out, or choose another --how")
    if texts.heldout and (len(names) != 2 or config.how == "concatenate"):
        raise ConfigError(
            "losses are measured between two soft prompts, linear or spherical",
            where="--heldout",
            got=f"{len(names)}, {config.how}",
            do="write the blend, and measure it with sordino evaluate",
        )


def parted(parts: Sequence[str]) -> tuple[list[str], list[float]]:
    """Names, and their weights if all have one. Raises BadInput where only some do."""
    names: list[str] = []
    weights: dict[int, float] = {}
    for part in parts:
        number = _number(part)
        if number is None:
            names.append(part)
        elif not names or len(names) - 1 in weights:
            raise BadInput("a weight follows its soft prompt", where=part, expected="PROMPT WEIGHT PROMPT WEIGHT")
        else:
            weights[len(names) - 1] = number
    if weights and len(weights) < len(names):
        missing = next(name for at, name in enumerate(names) if at not in weights)
        raise BadInput("this one has no weight and others do", where=missing, do="give all of them one, or none")
    return names, [weights[at] for at in sorted(weights)]


def _number(part: str) -> float | None:
    try:
        return float(part)
    except ValueError:
        return None


def _shown(
    path: BlendPath, labels: Sequence[str], chosen: float | None, outputs: Outputs, *, as_json: bool
) -> dict[str, Any]:
    """Print the table and draw the picture; the same as JSON."""
    from sordino.evaluation.analysis.path import to_json
    from sordino.evaluation.analysis.tables import path_explanation, path_table

    if outputs.picture is not None:
        from sordino.evaluation.analysis.pictures import path_figure

        show_picture(path_figure(path, labels[0], labels[1], chosen), outputs.picture)
    if not as_json:
        show_measured(path_table(path, labels, chosen))
        out.print(one_line(path_explanation(path)))
    return to_json(path)
