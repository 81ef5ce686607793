"""inspect: what is inside soft prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.console import err, one_line, out, printable, table, warn
from sordino.cli.evaluate import measuring_bar
from sordino.cli.loading import check_fits, loaded_model, loaded_prompts
from sordino.cli.looking import (
    PATHS,
    force_option,
    limit_option,
    overwrite_option,
    pass_tokens_option,
    picture_option,
    row_tokens_option,
    texts_of,
)
from sordino.cli.options import base_model_options, refuse_alone, was_given
from sordino.errors import ConfigError, DoesNotFit
from sordino.library.outputs import check_picture

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sordino.evaluation.analysis.inspection import Inspection
    from sordino.library.library import Library
    from sordino.prompts.soft_prompt import SoftPrompt
    from sordino.texts.pieces import Piece

# Positions of all the shortened prompts of one soft prompt and of what they read, unless --limit says otherwise.
_BUDGET = 24_000
_OF_TEXTS = ("--speaker", "--row-tokens", "--pass-tokens")


@click.command()
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option(
    "--text",
    "texts",
    multiple=True,
    type=PATHS,
    metavar="PATH",
    help="What importance and attention are measured on; may be repeated.  [default: a packaged text]",
)
@click.option("--quick", is_flag=True, help="Words, norms and similarity only: nothing that needs a text.")
@click.option("--words", type=click.IntRange(1, 20), default=3, show_default=True, metavar="N", help="Nearest words.")
@picture_option("All of it as a picture, .png or .svg.")
@click.option("--speaker", metavar="NAME", help="In chat logs: whose turns are measured.")
@limit_option(
    None,
    "Most tokens measured of a text.  [default: 64 to 512; none where a soft prompt is long]",
)
@row_tokens_option()
@pass_tokens_option()
@force_option()
@overwrite_option()
@base_model_options
def inspect(
    prompts: tuple[str, ...],
    texts: tuple[Path, ...],
    quick: bool,
    words: int,
    picture: Path | None,
    speaker: str | None,
    limit: int | None,
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
    """Look inside soft prompts: words, norms, importance, attention.

    For each virtual token: the nearest words, by cosine and by distance; its norm and where that lies among the vocabulary's; how
    the loss changes without it; how much of a text's attention it gets. By layer: the attention on the whole prompt. Of several
    soft prompts: how alike they are.
    """
    if quick:
        for flag, name in (("--text", "texts"), ("--limit", "limit"), *((flag, flag) for flag in _OF_TEXTS)):
            if was_given(name):
                raise ConfigError("--quick measures on no text", where=flag, do=f"leave {flag} or --quick out")
    if not texts:
        refuse_alone("--speaker", needs="--text")
    if picture is None:
        refuse_alone("--overwrite", needs="--picture")
    loaded = loaded_prompts(library, prompts)
    check_picture(picture, overwrite=overwrite)
    given = texts_of(texts, speaker)
    base = loaded_model(model, dtype, device)
    for label, prompt in loaded.items():
        check_fits(base, label, prompt, force=force)
    from sordino.evaluation.analysis.inspection import Inspection, affordable, depth_of, surface_of

    found = []
    for label, prompt in loaded.items():
        depth = None
        targets = affordable(prompt.n_tokens, _BUDGET) if limit is None else limit
        if not quick and limit is None and not targets:
            warn(
                f"{label}: importance and attention were not measured: of {prompt.n_tokens} virtual tokens it takes minutes; "
                "--limit 128 measures them all the same"
            )
        elif not quick:
            with measuring_bar() as progress:
                depth = depth_of(
                    base,
                    prompt,
                    _text(given, prompt),
                    limit=targets,
                    row_tokens=row_tokens,
                    pass_tokens=pass_tokens,
                    progress=progress,
                )
        found.append(Inspection(label, prompt, surface_of(base, prompt, words=words), depth))
    alike = _similarity(found)
    if picture is not None:
        from sordino.evaluation.analysis.pictures import inside_figure, rendered
        from sordino.storage import write_bytes

        write_bytes(picture, rendered(inside_figure(found, alike.get("pooled")), picture.suffix))
        err.print(f"Picture: {picture}")
    if as_json:
        click.echo(json.dumps(_json(base.name, found, alike), ensure_ascii=False, indent=2))
        return
    for inside in found:
        _show(inside)
    if alike:
        _show_similarity([inside.label for inside in found], alike)


def _text(given: Mapping[str, Sequence[Piece]], prompt: SoftPrompt) -> tuple[str, Sequence[Piece]]:
    if given:
        return ", ".join(given), [piece for pieces in given.values() for piece in pieces]
    from sordino.evaluation.off_domain import own_text

    return own_text(prompt)


def _similarity(found: Sequence[Inspection]) -> dict[str, NDArray[Any]]:
    """Both measures; none for one soft prompt, or, with a warning, for those that cannot be compared."""
    from sordino.prompts.similarity import KINDS, similarity_map

    if len(found) < 2:
        return {}
    try:
        return {kind: similarity_map([inside.prompt for inside in found], kind) for kind in KINDS}
    except DoesNotFit as error:
        warn(error.message)
        return {}


def _json(model: str, found: Sequence[Inspection], alike: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    from sordino.evaluation.analysis.inspection import to_json

    said: dict[str, Any] = {"model": model, "soft_prompts": [to_json(inside) for inside in found]}
    if alike:
        said["similarity"] = {kind.replace(" ", "_"): values.tolist() for kind, values in alike.items()}
    return said


def _show(inside: Inspection) -> None:
    from sordino.evaluation.analysis.inspection import findings

    surface, depth = inside.surface, inside.depth
    deep = ["#left out", "#attention"] if depth else []
    shown = table("#", "nearest by cosine", "nearest by distance", "#norm", "#percentile", *deep, title=inside.label)
    for at in range(inside.prompt.n_tokens):
        more = [f"{depth.importance.costs[at]:+.4f}", f"{depth.attention.by_token_P[at]:.1%}"] if depth else []
        shown.add_row(
            str(at + 1),
            _words(surface.by_cosine[at]),
            _words(surface.by_distance[at]),
            f"{surface.norms_P[at]:.2f}",
            f"{surface.percentiles_P[at]:.0f}",
            *more,
        )
    out.print(shown)
    low, middle, high = surface.vocabulary
    out.print(f"Norms of the vocabulary's words: half below {middle:.2f}, 90 % from {low:.2f} to {high:.2f}.")
    if depth:
        for line in findings(depth):
            out.print(one_line(line))
        out.print(
            "Attention on the prompt by layer: " + " ".join(f"{share:.0%}" for share in depth.attention.by_layer_L)
        )
    out.print()


def _words(near: Sequence[tuple[str, float]]) -> str:
    return "  ".join(f"{_word(word)} {value:.2f}" for word, value in near)


def _word(word: str) -> str:
    """Without the space in front; one of white space or nothing in quotation marks."""
    return printable(word.strip()) or json.dumps(word)


def _show_similarity(labels: Sequence[str], alike: Mapping[str, NDArray[Any]]) -> None:
    titles = {
        "pooled": "How alike: cosine of the mean vectors",
        "per token": "Mean cosine over pairs of virtual tokens",
    }
    for kind, values in alike.items():
        shown = table("", *(f"#{label}" for label in labels), title=titles[kind])
        for label, row in zip(labels, values, strict=True):
            shown.add_row(label, *(f"{value:.3f}" for value in row))
        out.print(shown)
