"""`sordino train`: texts in, a soft prompt out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sordino.cli.console import outlasting_readers
from sordino.cli.options import device_option, dtype_option, json_option, model_option, seed_option
from sordino.errors import BadInput, ConfigError


class _Train(click.Command):
    """What is wrong with a flag is a run's failure too, for the page that gave it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            flag = error.param.opts[0] if isinstance(error, click.BadParameter) and error.param is not None else ""
            _write_failure(ctx.params.get("error_file"), ConfigError(error.message, where=flag))
            raise


@click.command(cls=_Train, short_help="Make a soft prompt from texts.")
@click.argument("data", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--heldout",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Texts for the final report only; may be repeated.  [default: split off DATA]",
)
@click.option("--out", type=click.Path(path_type=Path), help="The file to write.  [default: DATA's name .zip, here]")
@click.option(
    "--voice",
    "voices",
    multiple=True,
    metavar="NAME=PATH",
    help="Train several soft prompts together on one model, each on its own texts; instead of DATA, may be repeated.",
)
@click.option("--out-dir", type=click.Path(path_type=Path), help="With --voice: the folder that gets a file a voice.")
@model_option()
@click.option("--tokens", default=20, show_default=True, help="Virtual tokens.")
@click.option("--steps", type=int, help="Optimiser steps.  [default: 300]")
@click.option("--minutes", type=float, help="Train about this long instead: a step count by calibration.")
@click.option("--batch", default=4, show_default=True, help="Examples a step.")
@click.option(
    "--row-tokens",
    default=128,
    show_default=True,
    help="Longest example, in tokens; longer texts are cut into several.",
)
@click.option("--lr", type=float, help="Learning rate, in units of the model's embedding RMS.  [default: 0.25]")
@click.option("--find-lr", is_flag=True, help="Try several learning rates for a few steps first and take the best.")
@click.option("--init", help="data, vocab, labels, random, text:WORDS or file:SOFT_PROMPT.  [default: data]")
@click.option(
    "--method",
    type=click.Choice(["plain", "residual"]),
    default="plain",
    show_default=True,
    help="Train the matrix itself, or a residual network that folds into it.",
)
@click.option(
    "--placement",
    type=click.Choice(["auto", "start", "after_bos"]),
    default="auto",
    show_default=True,
    help="Where the prompt sits; `start` for KoboldAI and PEFT.",
)
@click.option("--warmup", type=float, help="Share of the steps with a rising learning rate.  [default: 0.05]")
@click.option("--clip", type=float, help="Largest gradient norm.  [default: 1]")
@click.option("--weight-decay", type=float, help="Weight decay.  [default: 0]")
@click.option(
    "--average", type=float, help="Memory of the weight average, as a share of the steps; 0 is off.  [default: 0.1]"
)
@click.option(
    "--patience",
    type=int,
    help="Stop after so many evaluations without a better validation loss; 0 is off.  [default: 5]",
)
@click.option(
    "--evaluate-every",
    type=int,
    help="Steps between evaluations.  [default: a tenth of the run, in short runs less often]",
)
@click.option("--sample-every", type=int, help="Steps between samples.  [default: a fifth of the run]")
@click.option("--sample-text", help="What the samples continue.  [default: the first words of a validation text]")
@click.option(
    "--pass-tokens",
    type=int,
    help="Most positions in one forward pass; lower it if memory runs out. Only roundings change.  "
    "[default: 1024; of several voices on a GPU, what its memory holds]",
)
@click.option("--speaker", help="In chat logs: whose turns to learn.  [default: everybody but the user]")
@click.option("--name", help="The soft prompt's name.  [default: the file's]")
@click.option("--author", default="", help="Who made it.")
@click.option("--description", default="", help="What it does.")
@click.option("--licence", default="", help="Its licence, for instance CC-BY-4.0.")
@click.option("--tags", default="", help="Words to find it by, with commas.")
@click.option("--rating", type=click.Choice(["general", "mature", "explicit"]), help="Who it is for.")
@click.option("--no-samples", is_flag=True, help="Keep sample texts out of the file.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.option(
    "--resume",
    "resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Go on with a run that was stopped or killed: its .run folder; of several voices OUT_DIR/together.run.",
)
@click.option("--dry-run", is_flag=True, help="Read the texts, measure what the run would cost, and stop.")
@json_option()
@seed_option()
@device_option()
@dtype_option()
@click.option("--error-file", type=click.Path(path_type=Path), hidden=True, is_eager=True)
def train(error_file: Path | None, **options: Any) -> None:
    """Make a soft prompt from DATA: text files, folders of them, JSONL or CSV, chat logs, KoboldAI stories.

    JSONL and CSV have a column text, or prompt and completion, or messages, or the columns of Alpaca, ShareGPT and others
    (docs/training.md). Everything has a sane default, so `sordino train DATA` alone gives a good file. The texts are
    split into three sets that are never mixed: train, validation (learning rate, early stopping, choice of the first
    matrix) and held-out (the final report only).

    Several voices at once, on one model in memory: `sordino train --voice poe=POE --voice austen=AUSTEN --out-dir VOICES`.

    Ctrl-C saves and says how to go on; so do SIGTERM, a closed terminal, and an output that nobody reads any more.
    """
    try:
        with outlasting_readers():
            _train(options)
    except click.exceptions.Exit:
        raise
    except Exception as error:
        _write_failure(error_file, error)
        raise


def _write_failure(path: Path | None, error: Exception) -> None:
    """For the page, which started this process: it reads no log."""
    if path is not None:
        from sordino.training.failure import Failure

        Failure.of(error).write(path)


def _train(options: dict[str, Any]) -> None:
    if options["as_json"] and not options["dry_run"]:
        raise ConfigError("a run tells its figures in its .run folder", where="--json", do="give it with --dry-run")
    if options["resume"] is not None:
        _refuse_settings(click.get_current_context())
    if options["voices"] or options["out_dir"] is not None or is_group(options["resume"]):
        together(options)
        return
    # Before torch is loaded: a typing error should not cost seconds.
    for path in (*options["data"], *options["heldout"], *filter(None, [options["resume"]])):
        if not path.exists():
            raise BadInput("no such file or folder", where=path, do="check the spelling")
    from sordino.cli.training_run import run

    run(options)


def together(options: dict[str, Any]) -> None:
    """Several voices: what was asked for is checked before torch is loaded."""
    from sordino.cli.training_voices import check_voices

    if options["resume"] is None:
        options = {**options, "voices": check_voices(options)}
    from sordino.cli.training_together import run

    run(options)


def is_group(folder: Path | None) -> bool:
    """Whether this is the folder of several voices that were trained together."""
    from sordino.cli.training_voices import GROUP

    return folder is not None and (folder / GROUP).is_file()


def _refuse_settings(context: click.Context) -> None:
    """A run that goes on does so as it began: a flag that would change it must not be taken in silence."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in ("resume", "overwrite", "data", "error_file")
        and context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]
    if given:
        raise ConfigError(
            "a run that is resumed goes on as it began", where=", ".join(given), do="leave that out, or start a new run"
        )
