"""`sordino train`: texts in, a soft prompt out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.console import out, outlasting_readers, show_table
from sordino.cli.loading import ModelChoice, base_model_options, generate_command, loaded_model
from sordino.cli.options import PATH, json_option, refuse_with_resume, setting_options
from sordino.cli.training_options import (
    TrainCommand,
    check_exist,
    check_texts,
    dry_run_option,
    resume_option,
    training_text_options,
)
from sordino.errors import BadInput, ConfigError
from sordino.library.names import checked_name
from sordino.library.outputs import Outputs, check_folder
from sordino.training.calibration import Calibration, calibration_of
from sordino.training.config import Description, Loading, TrainConfig
from sordino.training.failure import recorded
from sordino.training.launch import Processes, launch, started_in_several
from sordino.training.recipes import RecipeChoice

if TYPE_CHECKING:
    from sordino.cli.training_display import RunDisplay
    from sordino.models.base_model import BaseModel
    from sordino.training.group import Group
    from sordino.training.job import Job
    from sordino.training.result import TrainResult
    from sordino.training.strategy import Strategy


@click.command(cls=TrainCommand, short_help="Make a soft prompt from texts.")
@training_text_options()
@click.option("--out", type=PATH, help="The file to write.  [default: DATA's name with .zip, in the working directory]")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="NAME=PATH",
    help="Train several soft prompts together on one model, each on its own texts; instead of DATA, may be repeated.",
)
@click.option("--voice", "prompts_by_voice", multiple=True, hidden=True)
@click.option("--out-dir", type=PATH, help="With --prompt: the folder that gets the files.")
@setting_options(Calibration, given_as="measured", only_given=True)
@setting_options(TrainConfig, given_as="settings", only_given=True)
@setting_options(RecipeChoice, given_as="recipe")
@click.option("--name", help="The soft prompt's name.  [default: the file's]")
@setting_options(Description, given_as="about")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@resume_option(
    "Resume a run that was stopped or killed, from its .run folder; several soft prompts from OUT_DIR/together.run.",
    metavar="RUN",
)
@dry_run_option("run")
@json_option()
@setting_options(Processes, given_as="several")
@base_model_options()
@click.option("--error-file", type=PATH, hidden=True, is_eager=True)
@click.option("--progress-file", type=PATH, hidden=True)
def train(error_file: Path | None, **options: Any) -> None:
    """Make a soft prompt from DATA: text files, folders of them, JSONL or CSV, chat logs, KoboldAI stories.

    JSONL and CSV have a column text, or prompt and completion, or messages, or the columns of Alpaca, ShareGPT and others
    (docs/training.md). Everything has a sane default, so `sordino train DATA` alone gives a good file. The texts are
    split into three sets that are never mixed: train, validation (learning rate, early stopping, choice of the first
    matrix) and held-out (the final report only).

    Several soft prompts at once, on one model in memory: `sordino train --prompt poe=POE --prompt austen=AUSTEN --out-dir MADE`.

    Ctrl-C saves the run and prints how to resume it; so do SIGTERM, a closed terminal and a closed output.
    """
    with outlasting_readers(), recorded(error_file):
        _train({**options, "prompts": (*options["prompts"], *options.pop("prompts_by_voice"))})


def _train(options: Mapping[str, Any]) -> None:
    texts, settings, resume = options["texts"], options["settings"], options["resume"]
    if options["as_json"] and not options["dry_run"]:
        raise ConfigError("a run's figures are in its .run folder", where="--json", do="give it with --dry-run")
    if resume is not None:
        refuse_with_resume(
            "a run", besides=("resume", "overwrite", "processes", "shard", "data", "error_file", "progress_file")
        )
        if texts.data:
            raise BadInput("a run that is resumed reads the texts it began with", where="DATA", do="leave DATA out")
    calibration = calibration_of(settings, options["measured"])
    config = TrainConfig(**options["recipe"].applied(settings))
    named = _named_texts(options) if options["prompts"] or options["out_dir"] is not None else {}
    check_texts(*texts.data, *texts.heldout)
    check_exist(*filter(None, [resume]))
    from sordino.training.group import is_group

    several: Processes = options["several"]
    if named or (resume is not None and is_group(resume)):
        group = _group(options, named, config)
        folder, work = group.folder, partial(_train_group, group, calibration, options)
        if several.shard:
            raise ConfigError("this is for one soft prompt", where="--shard", do="train one after another")
    else:
        job = _one(options, config)
        folder, work = job.folder, partial(_train_one, job, calibration, options)
        if several.shard:
            _check_shard(job)
    if several.to_launch:
        go_on = (
            f"sordino train --resume {quote(str(folder))} --processes {several.processes}{' --shard' * several.shard}"
        )
        raise click.exceptions.Exit(launch(several.processes, sys.argv[1:], go_on))
    from sordino.training.distributed import joined

    with joined(shard=several.shard) as strategy:
        work(strategy)


# Parsing --------------------------------------------------------------------------------------------------------------


def _named_texts(options: Mapping[str, Any]) -> dict[str, Path]:
    """The texts of each soft prompt by its name. Raises BadInput, ConfigError."""
    if options["out_dir"] is None:
        raise ConfigError("there is no folder to write the files to", where="--prompt", do="add --out-dir FOLDER")
    if not options["prompts"]:
        raise ConfigError(
            "this is for several soft prompts", where="--out-dir", do="give --prompt NAME=PATH, or use --out FILE"
        )
    texts = options["texts"]
    if texts.data:
        raise ConfigError(
            "both DATA and --prompt were given", where=texts.data[0], do="give all texts as --prompt NAME=PATH"
        )
    for flag, value in (("--out", options["out"]), ("--name", options["name"]), ("--heldout", texts.heldout)):
        if value:
            raise ConfigError("this is for one soft prompt, not for several", where=flag, do="leave it out")
    check_folder(options["out_dir"])
    named: dict[str, Path] = {}
    for argument in options["prompts"]:
        name, path = _named_text(argument)
        # Files whose names differ only in case are one file on some systems.
        if name.casefold() in {known.casefold() for known in named}:
            raise BadInput("two soft prompts have the same name", where=f"--prompt {name}", do="give each its own")
        named[name] = path
    return named


def _named_text(argument: str) -> tuple[str, Path]:
    where = f"--prompt {argument}"
    name, equals, path = argument.partition("=")
    if not equals or not path:
        raise BadInput("not a name and its texts", where="--prompt", expected="NAME=PATH", got=argument)
    try:
        name = checked_name(name)
    except BadInput as error:
        raise BadInput("a file cannot have this name", where=where, got=error.got, do="choose another") from None
    if name.casefold() == "together":
        raise BadInput("a file cannot have this name", where=where, got="the folder of all runs", do="choose another")
    check_texts(Path(path), where=where)
    return name, Path(path)


def _one(options: Mapping[str, Any], config: TrainConfig) -> Job:
    """The run to begin or to resume, checked. Raises SordinoError."""
    from sordino.training.job import check_job, stored_job

    if options["resume"] is not None:
        return stored_job(options["resume"], overwrite=options["overwrite"])
    job = _job(options, config)
    check_job(job)
    return job


def _job(options: Mapping[str, Any], config: TrainConfig) -> Job:
    from sordino.training.job import RunOptions, train_job

    model: ModelChoice = options["model"]
    outputs = Outputs(options["out"], name=options["name"], overwrite=options["overwrite"])
    run = RunOptions(outputs, options["about"], model.model, Loading(model.device, model.dtype, model.layers))
    return train_job(options["texts"], config, run)


def _group(options: Mapping[str, Any], named: Mapping[str, Path], config: TrainConfig) -> Group:
    """The runs to begin or to resume, checked. Raises SordinoError."""
    from sordino.training.group import check_group, new_group, stored_group

    if options["resume"] is not None:
        return stored_group(options["resume"], overwrite=options["overwrite"])
    fill_passes = "pass_tokens" not in options["settings"]
    group = new_group(_job(options, config), named, options["out_dir"], fill_passes=fill_passes)
    check_group(group)
    return group


def _check_shard(job: Job) -> None:
    """Raises ConfigError for what cannot be sharded."""
    loading = job.loading
    if loading.quantise is not None:
        raise ConfigError("packed weights cannot be sharded", where="--shard", got=f"--quantise {loading.quantise}")
    if loading.device is not None:
        raise ConfigError("each process takes its own GPU", where="--device", do="leave it out with --shard")


# Running --------------------------------------------------------------------------------------------------------------


def _base_of(job: Job, options: Mapping[str, Any], strategy: Strategy) -> BaseModel:
    # Where all of a model need not fit on a GPU.
    loading = replace(job.loading, device="cpu") if strategy.together else job.loading
    base = loaded_model(
        job.model,
        **asdict(loading),
        ask=not options["as_json"] and not started_in_several(),
        only_decoders="sharding" if strategy.together else job.config.only_decoders,
    )
    return strategy.place(base)


def _train_one(job: Job, calibration: Calibration, options: Mapping[str, Any], strategy: Strategy) -> None:
    from sordino.cli.training_display import RunDisplay, print_event, show_stopped
    from sordino.training.execute import dry_run, execute
    from sordino.training.progress_file import noting

    base = _base_of(job, options, strategy)
    with RunDisplay() as display:
        if options["dry_run"]:
            on_event = print_event if options["as_json"] and strategy.saves else display.show
            dry_run(job, base, calibration, on_event=on_event, strategy=strategy)
            return
        made = execute(
            job, base, calibration, resume=options["resume"] is not None, should_stop=display.should_stop, strategy=strategy,
            on_event=noting(options["progress_file"] if strategy.saves else None, display.show),
        )  # fmt: skip
    if made is None:
        show_stopped(job.folder, f"{display.reached} of {display.steps}; saved.")
        return
    out.print(f"Try it:  {generate_command('Once', job.out, job.model)}")
    out.print(f"Keep it: sordino install {quote(str(job.out))}")


def _train_group(group: Group, calibration: Calibration, options: Mapping[str, Any], strategy: Strategy) -> None:
    from sordino.cli.training_display import GroupJson, RunDisplay, show_stopped
    from sordino.training.group import dry_run_group, execute_group

    base = _base_of(group.first, options, strategy)
    with RunDisplay(tuple(group.jobs)) as display:
        if options["dry_run"]:
            on_event = GroupJson().add if options["as_json"] and strategy.saves else display.show_named
            dry_run_group(group, base, calibration, on_event=on_event, strategy=strategy)
            return
        made = execute_group(
            group, base, calibration, resume=options["resume"] is not None, should_stop=display.should_stop, strategy=strategy,
            on_event=display.show_named,
        )  # fmt: skip
    if made is None:
        show_stopped(group.folder, f"{display.reached}; all soft prompts are saved.")
        return
    out.print()
    _show_losses(made, display)
    out.print(f"Keep one: sordino install {quote(str(group.first.out))}")


def _show_losses(made: Mapping[str, TrainResult], display: RunDisplay) -> None:
    """Held-out losses are nats a token, of each soft prompt's own texts."""
    rows = []
    for name, result in made.items():
        nll = result.prompt.metadata.heldout.get("nll", {})
        losses = [f"{nll[key]:.3f}" if key in nll else "" for key in ("soft_prompt", "no_prompt")]
        progress = display.finished[name].progress
        best = f"{progress.best_loss:.3f}" if progress.best_loss < float("inf") else ""
        rows.append([name, str(progress.step), best, *losses, result.file.name])
    show_table(["soft prompt", "#steps", "#validation", "#held-out: with it", "#without", "file"], rows)
