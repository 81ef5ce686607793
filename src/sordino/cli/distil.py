"""`sordino distil`: a long text becomes a few virtual tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.console import out, outlasting_readers, print_json
from sordino.cli.loading import ModelChoice, base_model_options, loaded_model
from sordino.cli.options import PATH, json_option, refuse_with_resume, setting_options
from sordino.cli.training_options import check_exist, resume_option
from sordino.errors import BadInput
from sordino.library.outputs import Outputs
from sordino.training.config import Description, Loading
from sordino.training.distil.config import DistilConfig
from sordino.training.failure import recorded

if TYPE_CHECKING:
    from sordino.training.job import Job


@click.command(short_help="Turn a long instruction or a character card into a soft prompt.")
@click.argument("texts", metavar="TEXT...", nargs=-1)
@click.option(
    "--out", type=PATH, help="The file to write.  [default: the first file's name with .zip, in the working directory]"
)
@setting_options(DistilConfig, given_as="config")
@click.option("--name", help="The soft prompt's name.  [default: the file's]")
@setting_options(Description, given_as="about")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@resume_option("Resume a run that was stopped or killed, from its .run folder.", metavar="RUN")
@json_option()
@base_model_options()
@click.option("--error-file", type=PATH, hidden=True)
@click.option("--progress-file", type=PATH, hidden=True)
def distil(error_file: Path | None, **options: Any) -> None:
    """Turn TEXT into a soft prompt: an instruction, examples, a character card, a lorebook, notes on style.

    TEXT is a file (text; a card or a lorebook as PNG or JSON) or words in quotes; several are joined into one. The model
    writes continuations with TEXT in front, and the virtual tokens learn to have the same effect. They keep how it writes, not
    facts: docs/distil.md.

    Once the steps begin, Ctrl-C saves the run and prints how to resume it.
    """
    with outlasting_readers(), recorded(error_file):
        _distil(options)


def _distil(options: Mapping[str, Any]) -> None:
    # Before torch is loaded, which takes seconds.
    given = _given(options["texts"]) if options["resume"] is None else ((), "")
    if openings := options["config"].openings:
        check_exist(Path(openings))
    from sordino.cli.training_display import RunDisplay, show_stopped
    from sordino.evaluation.report import to_json
    from sordino.training.execute import execute
    from sordino.training.progress_file import noting

    job, as_json = _job(options, *given), options["as_json"]
    base = loaded_model(job.model, **asdict(job.loading), ask=not as_json, only_decoders="distillation")
    with RunDisplay() as display:
        resume = options["resume"] is not None
        on_event = noting(options["progress_file"], display.show_status if as_json else display.show)
        made = execute(job, base, resume=resume, on_event=on_event, should_stop=display.should_stop)
    if made is None:
        show_stopped(job.folder, f"{display.reached} of {display.steps}; saved.")
    elif as_json:
        report = to_json(made.report) if made.report is not None else {}
        print_json({"model": base.name, "file": str(made.file), "folder": str(made.folder), **report})
    else:
        out.print(f"Keep it: sordino install {quote(str(job.out))}")


def _given(texts: Sequence[str]) -> tuple[tuple[Path, ...], str]:
    """Files and words, which can be read. Raises BadInput, DataError."""
    from sordino.training.distil.source import files_and_words, read_source

    files, words = files_and_words(texts)
    read_source(files, words)
    return files, words


def _job(options: Mapping[str, Any], files: tuple[Path, ...], words: str) -> Job:
    """The run that is asked for, or that is resumed, checked. Raises SordinoError."""
    from sordino.training.job import RunOptions, check_job, distil_job, stored_job

    if options["resume"] is not None:
        refuse_with_resume("a run", besides=("resume", "overwrite", "as_json", "error_file", "progress_file"))
        check_exist(options["resume"])
        return stored_job(options["resume"], overwrite=options["overwrite"])
    if options["out"] is None and words and not files:
        raise BadInput("there is no file to write", where="--out", do="give --out NAME.zip")
    model: ModelChoice = options["model"]
    outputs = Outputs(options["out"], name=options["name"], overwrite=options["overwrite"])
    config = replace(options["config"], text=words)
    run = RunOptions(outputs, options["about"], model.model, Loading(model.device, model.dtype, model.layers))
    job = distil_job(files, config, run)
    check_job(job)
    return job
