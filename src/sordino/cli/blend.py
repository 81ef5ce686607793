"""blend: several soft prompts made into one, and the way between two measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.console import err, one_line, out, table, warn
from sordino.cli.evaluate import measuring_bar
from sordino.cli.loading import check_fits, loaded_model, loaded_prompts
from sordino.cli.looking import (
    PATHS,
    check_out,
    force_option,
    limit_option,
    overwrite_option,
    pass_tokens_option,
    picture_option,
    row_tokens_option,
    texts_of,
    written,
)
from sordino.cli.options import base_model_options, refuse_alone
from sordino.errors import BadInput, ConfigError
from sordino.library.outputs import check_picture

if TYPE_CHECKING:
    from sordino.evaluation.analysis.path import Path as Way
    from sordino.library.library import Library
    from sordino.models.base_model import BaseModel
    from sordino.prompts.soft_prompt import SoftPrompt
    from sordino.texts.pieces import Piece


@click.command()
@click.argument("parts", metavar="PROMPT [WEIGHT] PROMPT [WEIGHT] ...", nargs=-1, required=True)
@click.option("--out", "target", type=PATHS, metavar="FILE", help="The .zip to write; may be left out with --heldout.")
@click.option(
    "--how",
    type=click.Choice(["linear", "spherical", "concatenate"]),
    default="linear",
    show_default=True,
    help="Row by row, along a straight line or an arc that keeps norms; or one behind the other.",
)
@click.option("--name", metavar="NAME", help="The blend's name.  [default: what it is made of]")
@click.option(
    "--heldout",
    multiple=True,
    type=PATHS,
    metavar="PATH",
    help="Texts to measure the way between two soft prompts on; may be repeated, a line of the table each.",
)
@click.option(
    "--points", type=click.IntRange(2, 101), default=11, show_default=True, metavar="N", help="Blends on the way."
)
@picture_option("The way as a picture, .png or .svg.  [default: beside OUT]")
@click.option("--speaker", metavar="NAME", help="In chat logs: whose turns are measured.")
@limit_option(2048, "Most tokens measured of a text, spread evenly; 0 for all.")
@row_tokens_option()
@pass_tokens_option()
@force_option()
@overwrite_option()
@base_model_options
def blend(
    parts: tuple[str, ...],
    target: Path | None,
    how: Any,
    name: str | None,
    heldout: tuple[Path, ...],
    points: int,
    picture: Path | None,
    speaker: str | None,
    limit: int,
    row_tokens: int,
    pass_tokens: int,
    force: bool,
    overwrite: bool,
    model: str,
    device: str | None,
    dtype: str | None,
    library: Library,
    as_json: bool,
) -> None:
    """Blend soft prompts into one, and measure the way between two.

    For instance: sordino blend a.zip 0.7 b.zip 0.3 --out c.zip

    They must be for one base model, stand in the same place and, unless concatenated, be of one length: rows are paired by
    position. Weights are made to sum to one, and are equal if none is given. The file says what it was made of; the strictest
    rating is kept.
    """
    from sordino.prompts.blending import blend as blended

    names, weights = parted(parts)
    if not heldout:
        for flag in ("--points", "--picture", "--speaker", "--limit", "--row-tokens", "--pass-tokens", "--force", "--model",
                     "--device", "--dtype"):  # fmt: skip
            refuse_alone(flag, needs="--heldout")
        if target is None:
            raise ConfigError("there is nothing to do", where="blend", do="give --out, --heldout or both")
    if target is None:
        refuse_alone("--name", needs="--out")
    if how == "concatenate" and weights:
        raise ConfigError("a concatenation has no weights", where="--how", do="leave them out, or choose another --how")
    if heldout and (len(names) != 2 or how == "concatenate"):
        raise ConfigError(
            "a way is between two soft prompts, linear or spherical",
            where="--heldout",
            got=f"{len(names)}, {how}",
            do="write the blend, and measure it with sordino evaluate",
        )
    prompts = loaded_prompts(library, names)
    made = blended(list(prompts.values()), weights or [1.0] * len(names), how)
    result = made.prompt.with_metadata(name=name) if name else made.prompt
    if heldout and target is not None and picture is None:
        picture = target.with_suffix(".png")
    check_out(target, overwrite=overwrite)
    check_picture(picture, overwrite=overwrite)
    for note in made.notes:
        warn(note)
    said: dict[str, Any] = {"notes": list(made.notes)}
    if heldout:
        texts = texts_of(heldout, speaker)
        base = loaded_model(model, dtype, device)
        for label, prompt in prompts.items():
            check_fits(base, label, prompt, force=force)
        also = None if target is None else weights[1] / sum(weights) if weights else 0.5
        way = _way(base, prompts, texts, how, points, also, limit, row_tokens, pass_tokens)
        said["path"] = _shown(way, list(prompts), also, picture, as_json=as_json)
    if target is not None:
        written(result, target, overwrite=overwrite)
        said["out"] = {"path": str(target), "content_hash": result.content_hash, "n_tokens": result.n_tokens}
    if as_json:
        click.echo(json.dumps(said, ensure_ascii=False, indent=2))


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


def _way(
    base: BaseModel,
    prompts: Mapping[str, SoftPrompt],
    texts: Mapping[str, Sequence[Piece]],
    how: Any,
    points: int,
    also: float | None,
    limit: int,
    row_tokens: int,
    pass_tokens: int,
) -> Way:
    from sordino.evaluation.analysis.losses import passage_of
    from sordino.evaluation.analysis.path import path_between

    passages = {label: passage_of(base, pieces, row_tokens=row_tokens, limit=limit) for label, pieces in texts.items()}
    first, second = prompts.values()
    with measuring_bar() as progress:
        return path_between(
            base, first, second, passages, how=how, points=points, also=also, pass_tokens=pass_tokens, progress=progress
        )


def _shown(
    way: Way, labels: Sequence[str], chosen: float | None, picture: Path | None, *, as_json: bool
) -> dict[str, Any]:
    """Print the table and draw the picture; the same as JSON."""
    from sordino.evaluation.analysis.path import to_json

    if picture is not None:
        from sordino.evaluation.analysis.pictures import path_figure, rendered
        from sordino.storage import write_bytes

        write_bytes(picture, rendered(path_figure(way, labels[0], labels[1], chosen), picture.suffix))
        err.print(f"Picture: {picture}")
    if not as_json:
        shown = table(f"#{labels[0]}", f"#{labels[1]}", *(f"#loss on {one_line(text)}" for text in way.losses), "")
        for at, share in enumerate(way.shares):
            losses = [f"{losses[at]:.3f}" for losses in way.losses.values()]
            mark = "written" if chosen is not None and abs(share - chosen) < 1e-9 else ""
            shown.add_row(f"{1 - share:.2f}", f"{share:.2f}", *losses, mark)
        shown.add_row("", "", *(f"{loss:.3f}" for loss in way.without.values()), "no prompt")
        out.print(shown)
        tokens = ", ".join(f"{count:,} tokens of {one_line(text)}" for text, count in way.tokens.items())
        out.print(f"Loss in nats per token, lower is better; measured on {tokens}.")
    return to_json(way)
