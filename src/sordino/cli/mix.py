"""`sordino mixture`: several soft prompts that write as one, weighted by what they predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from sordino import formats
from sordino.cli.console import print_json
from sordino.cli.loading import PromptChoice, base_model_options
from sordino.cli.options import (
    force_option,
    json_option,
    library_option,
    output_options,
    paths_option,
    refuse_alone,
    setting_options,
    was_given,
)
from sordino.cli.training_options import check_texts, training_text_options
from sordino.errors import BadInput, ConfigError, SoftPromptFileError
from sordino.library.names import without_ending
from sordino.library.outputs import Outputs, check_picture, mixture_name
from sordino.prompts.mixture import MAX_COMPONENTS
from sordino.training.config import Description
from sordino.training.mixture.config import FitConfig, JointConfig

_OF_JOINT = ("--kind", "--tokens", "--steps", "--batch", "--lr")


@click.group(short_help="Weigh several soft prompts by examples, so that they write as one.")
def mixture() -> None:
    """Several soft prompts that write as one: p(y|x) = sum of w_k p(y|x, prompt k)."""


@mixture.command(short_help="Find the weights of several soft prompts, and measure the mixture.")
@click.argument("more", metavar="[PROMPT]...", nargs=-1)
@click.option(
    "--components", multiple=True, metavar="PROMPT...", help="The soft prompts: names of the library, or files."
)
@training_text_options(
    paths_option(
        "--data", "data", "Texts to fit the weights to: files, folders, JSONL; may be repeated.", required=True
    )
)
@click.option(
    "--joint",
    type=int,
    metavar="K",
    help="Train K soft prompts together with their weights, from different excerpts of the texts, or from the K that are given.",
)
@setting_options(JointConfig, "kind", "tokens", "steps", "batch", "lr", given_as="training", only_given=True)
@setting_options(FitConfig, "gate", "row_tokens", "context_tokens", "limit", "pass_tokens", "seed", given_as="config")
@setting_options(Description, "author", "description", "licence", given_as="about")
@output_options(
    out="The file to write, NAME.mix.zip.",
    name="The mixture's name.  [default: the file's]",
    picture="Also draw the report, as a .png or .svg.",
    required=True,
)
@force_option()
@base_model_options()
@library_option()
@json_option()
def fit(more: tuple[str, ...], components: tuple[str, ...], **options: Any) -> None:
    """Find the weights of several soft prompts from examples, and measure the mixture.

    Name the soft prompts after --components. The weights are those under which the texts of --data are
    likeliest (EM). The report compares every component, their ensemble and the mixture on texts that were held out, and says
    whether weights that depend on the text do better.
    """
    names, outputs = (*components, *more), options["outputs"]
    _check_components(names, options["joint"])
    check_texts(*options["texts"].data, *options["texts"].heldout)
    _check_no_texts(more)
    mixture_name(outputs.target, overwrite=outputs.overwrite)
    check_picture(outputs.picture, overwrite=outputs.overwrite)
    _fit(names, options)


def _check_components(names: Sequence[str], joint: int | None) -> None:
    """Raises BadInput, ConfigError."""
    where = "--components"
    if joint is None:
        for flag in _OF_JOINT:
            refuse_alone(flag, needs="--joint")
        if not names:
            raise BadInput(
                "there is nothing to mix", where=where, expected="soft prompts", do="give some, or --joint K"
            )
    elif not 1 <= joint <= MAX_COMPONENTS:
        raise ConfigError("out of range", where="--joint", expected=f"1 to {MAX_COMPONENTS}", got=joint)
    elif names:
        for flag, had in (("--tokens", "a length"), ("--kind", "a kind")):
            if was_given(flag):
                raise ConfigError(f"the components already have {had}", where=flag, do="leave it out, or --components")
        if len(names) != joint:
            what = "give as many soft prompts as --joint says, or none"
            raise ConfigError(what, where=where, expected=joint, got=len(names))
    if len(names) > MAX_COMPONENTS:
        raise ConfigError("too many soft prompts", where=where, expected=f"at most {MAX_COMPONENTS}", got=len(names))


def _fit(names: Sequence[str], options: Mapping[str, Any]) -> None:
    config: FitConfig = options["config"]
    outputs: Outputs = options["outputs"]
    out = outputs.target
    assert out is not None
    joint, model = None, options["model"]
    if options["joint"] is not None:
        model = model.to_train
        pass_tokens = min(config.pass_tokens, JointConfig().pass_tokens)
        joint = JointConfig(**options["training"], seed=config.seed, pass_tokens=pass_tokens)
    prompts = PromptChoice(tuple(names), options["library"], options["force"])
    given = prompts.load_single()
    base = prompts.load_model(model, given, ask=not options["as_json"])
    from sordino.cli.mix_display import MixtureDisplay, show_fitted
    from sordino.training.mixture.execute import MixtureJob, execute_mixture
    from sordino.training.mixture.report import to_json

    job = MixtureJob(
        list(given.items()), options["texts"], out,
        options["about"].metadata(outputs.name or without_ending(out.name)), config, joint,
        count=options["joint"] or 0, picture=outputs.picture, overwrite=outputs.overwrite,
    )  # fmt: skip
    with MixtureDisplay() as display:
        fitted = execute_mixture(job, base, display.show)
    if options["as_json"]:
        report = {"model": base.name, "seed": config.seed, "out": str(out), **to_json(fitted.report)}
        print_json({**report, "gate": fitted.mixture.gate is not None})
    else:
        show_fitted(fitted, config, out, options["model"].model)


def _check_no_texts(more: Sequence[str]) -> None:
    """`--data A B` gives B as a soft prompt. Raises BadInput that says so where B is a file of another kind."""
    for name in more:
        if Path(name).is_file():
            try:
                formats.peek(Path(name))
            except SoftPromptFileError as error:
                raise BadInput(
                    f"not a soft prompt ({error.what})", where=name, do="if it is a text, give it a --data of its own"
                ) from error
