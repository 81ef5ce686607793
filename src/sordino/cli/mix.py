"""`sordino mixture`: several soft prompts that write as one, weighted by what they predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sordino.cli.options import (
    device_option,
    dtype_option,
    json_option,
    library_option,
    model_option,
    refuse_alone,
    seed_option,
)
from sordino.errors import BadInput, ConfigError, SoftPromptFileError
from sordino.library.outputs import check_picture, mixture_name

_PATHS = click.Path(path_type=Path)
_OF_JOINT = ("--tokens", "--steps", "--batch", "--lr")


@click.group(short_help="Weigh several soft prompts by examples, so that they write as one.")
def mixture() -> None:
    """Several soft prompts that write as one: p(y|x) = sum of w_k p(y|x, prompt k)."""


@mixture.command(short_help="Find the weights of several soft prompts, and measure the mixture.")
@click.argument("more", metavar="[PROMPT]...", nargs=-1)
@click.option(
    "--components", multiple=True, metavar="PROMPT...", help="The soft prompts: names of the library, or files."
)
@click.option(
    "--data",
    multiple=True,
    required=True,
    type=_PATHS,
    metavar="PATH",
    help="Texts to fit the weights to: files, folders, JSONL; may be repeated.",
)
@click.option(
    "--heldout",
    multiple=True,
    type=_PATHS,
    metavar="PATH",
    help="Texts for the final report only; may be repeated.  [default: split off --data]",
)
@click.option("--out", type=_PATHS, required=True, metavar="FILE", help="The file to write, NAME.mix.zip.")
@click.option(
    "--joint",
    type=int,
    metavar="K",
    help="Train K soft prompts together with their weights, from different excerpts of the texts, or from the K that are given.",
)
@click.option(
    "--tokens", type=int, metavar="N", help="Virtual tokens of each that --joint starts from an excerpt.  [default: 20]"
)
@click.option("--steps", type=int, metavar="N", help="Optimiser steps of --joint.  [default: 150]")
@click.option(
    "--batch", type=int, metavar="N", help="Examples a step of --joint, each behind every component.  [default: 4]"
)
@click.option(
    "--lr",
    type=float,
    metavar="X",
    help="Learning rate of --joint, in units of the model's embedding RMS.  [default: 0.25]",
)
@click.option(
    "--gate",
    type=click.Choice(["auto", "never", "always"]),
    default="auto",
    show_default=True,
    help="Weights that depend on the text: kept where they are better on held-out texts, not tried, or kept in any case.",
)
@click.option(
    "--row-tokens",
    type=int,
    default=128,
    show_default=True,
    metavar="N",
    help="Longest example, in tokens; longer texts are cut into several.",
)
@click.option(
    "--context-tokens",
    type=int,
    default=32,
    show_default=True,
    metavar="N",
    help="Of a text without a prompt: tokens that the rest is predicted from, and that the gate reads.",
)
@click.option(
    "--limit",
    type=int,
    default=16_384,
    show_default=True,
    metavar="N",
    help="Most tokens of each set that are measured, spread evenly; 0 for all.",
)
@click.option(
    "--pass-tokens",
    type=int,
    default=4096,
    show_default=True,
    metavar="N",
    help="Most positions in one forward pass; lower it if memory runs out. The result is the same.",
)
@click.option(
    "--speaker", metavar="NAME", help="In chat logs: whose turns to learn.  [default: everybody but the user]"
)
@click.option("--name", help="The mixture's name.  [default: the file's]")
@click.option("--author", default="", help="Who made it.")
@click.option("--description", default="", help="What it does.")
@click.option("--licence", default="", help="Its licence, for instance CC-BY-4.0.")
@click.option("--picture", type=_PATHS, metavar="FILE", help="Also draw the report, as a .png or .svg.")
@click.option("--overwrite", is_flag=True, help="Replace OUT, and the picture, if they exist.")
@click.option("--force", is_flag=True, help="Take a soft prompt that was made for another model of the same width.")
@seed_option()
@model_option()
@device_option()
@dtype_option()
@library_option()
@json_option()
def fit(**options: Any) -> None:
    """Find how much weight each of several soft prompts gets, from examples, and measure what that is worth.

    The soft prompts are given behind --components, one or several. The weights are those under which the texts of --data are
    likeliest (EM). The report compares every component, their ensemble and the mixture on texts that were held out, and says
    whether weights that depend on the text do better.
    """
    from sordino.prompts.mixture import MAX_COMPONENTS

    more: tuple[str, ...] = options.pop("more")
    names = (*options.pop("components"), *more)
    joint: int | None = options["joint"]
    if joint is None:
        for flag in _OF_JOINT:
            refuse_alone(flag, needs="--joint")
        if not names:
            raise BadInput(
                "there is nothing to mix", where="--components", expected="soft prompts", do="give some, or --joint K"
            )
    elif not 1 <= joint <= MAX_COMPONENTS:
        raise ConfigError("out of range", where="--joint", expected=f"1 to {MAX_COMPONENTS}", got=joint)
    elif names:
        refuse_alone("--tokens", needs="no --components, as they have a length already,")
        if len(names) != joint:
            raise ConfigError(
                "as many soft prompts as --joint says are to be given, or none", where="--components", expected=joint,
                got=len(names),
            )  # fmt: skip
    if len(names) > MAX_COMPONENTS:
        raise ConfigError(
            "too many soft prompts", where="--components", expected=f"at most {MAX_COMPONENTS}", got=len(names)
        )
    # Before torch is loaded: a typing error should not cost seconds.
    for path in (*options["data"], *options["heldout"]):
        if not path.exists():
            raise BadInput("no such file or folder", where=path, do="check the spelling")
    _check_no_texts(more)
    mixture_name(options["out"], overwrite=options["overwrite"])
    check_picture(options["picture"], overwrite=options["overwrite"])
    from sordino.cli.mixing_run import run

    run(names, options)


def _check_no_texts(more: Sequence[str]) -> None:
    """`--data A B` gives B as a soft prompt. Raises BadInput that says so where B is a file of another kind."""
    from sordino import formats

    for name in more:
        if Path(name).is_file():
            try:
                formats.peek(Path(name))
            except SoftPromptFileError as error:
                raise BadInput(
                    f"not a soft prompt ({error.what})", where=name, do="if it is a text, give it a --data of its own"
                ) from error
