"""`sordino sweep`: which length, learning rate, start, method and model suit these texts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.console import outlasting_readers
from sordino.cli.loading import ModelChoice, loaded_model
from sordino.cli.options import PATH, Decorator, refuse_with_resume, setting_options
from sordino.cli.training_options import check_exist, check_texts, dry_run_option, resume_option, training_text_options
from sordino.errors import BadInput, ConfigError
from sordino.models.bundled import DEFAULT_MODEL
from sordino.training.config import RATES, Loading, TrainConfig
from sordino.training.launch import Processes, launch
from sordino.training.sweep.grid import FACTORS, Spec

if TYPE_CHECKING:
    from sordino.models.base_model import BaseModel
    from sordino.training.sweep.execute import Sweep

STEPS = 120


def _factor_option(flag: str, default: str, help: str, *, metavar: str, short: str | None = None) -> Decorator:
    flags = filter(None, [flag, short])
    return click.option(*flags, multiple=True, default=(default,), show_default=True, metavar=metavar, help=help)


def _rates_option() -> Decorator:
    shown = "; ".join(f"{rate:g} for {kind}" for kind, rate in RATES.items())
    return click.option("--lr", multiple=True, show_default=shown, metavar="X,X", help="Learning rates to try.")


@click.command(short_help="Try many settings together and keep the best.")
@training_text_options()
@click.option("--out-dir", type=PATH, help="The folder for all results; made where it does not exist.")
@_factor_option("--kind", "embedding", "Kinds of soft prompt to try: embedding, kv.", metavar="A,B")
@_factor_option("--tokens", "20", "Virtual tokens to try.", metavar="N,N")
@_rates_option()
@_factor_option(
    "--init",
    "data",
    "Starts to try: data, vocab, labels, random; text:WORDS and file:SOFT_PROMPT in an --init of their own.",
    metavar="A,B",
)
@_factor_option("--seed", "0", "Seeds to try.", metavar="N,N")
@_factor_option("--method", "plain", "plain, residual.", metavar="A,B")
@_factor_option("--model", DEFAULT_MODEL, "Base models to try, one after another in memory.", metavar="A,B", short="-m")
@setting_options(Spec, "random", "full", "split_seed", given_as="trying", only_given=True)
@setting_options(
    TrainConfig, "steps", "batch", "row_tokens", "pass_tokens", given_as="rest", only_given=True, steps=STEPS
)
@click.option("--overwrite", is_flag=True, help="Start over where OUT_DIR already holds a sweep.")
@resume_option("Resume a sweep that was stopped or killed.", metavar="OUT_DIR")
@dry_run_option("sweep")
@setting_options(Processes, "processes", given_as="several")
@click.option(
    "--on",
    metavar="CLUSTER",
    help="Train on a Ray cluster: ray, that of this machine, or ray://HOST:PORT. All its machines need the same files.",
)
@setting_options(ModelChoice, "device", "dtype", "quantise", "offload", given_as="machine")
def sweep(**options: Any) -> None:
    """Try every combination of the values given on DATA, trained together on one base model at a time.

    All runs see the same three sets of texts. Those that do worse on the validation set end early (successive halving); the
    best gets a file, the finished ones are measured on held-out texts: a table, plots against each factor that was varied, all
    results as JSON, and what they say about three claims of arXiv 2104.08691.

    `sordino sweep TEXTS --tokens 5,20,50 --lr 0.1,0.25 --init data,vocab --out-dir SWEEP`

    Ctrl-C saves the sweep and prints how to resume it; so do SIGTERM, a closed terminal and a closed output.
    """
    # What was given wrong comes before what was not given.
    spec = _spec(options)
    _check_cluster(options)
    if options["resume"] is not None:
        refuse_with_resume("a sweep", besides=("resume", "processes", "on"))
    elif not options["texts"].data:
        raise BadInput("there is nothing to train on", where="DATA", expected="text files or folders")
    elif options["out_dir"] is None:
        raise BadInput("there is no folder for the results", where="--out-dir", do="add --out-dir FOLDER")
    check_texts(*options["texts"].data, *options["texts"].heldout)
    check_exist(*filter(None, [options["resume"]]))
    with outlasting_readers():
        _run(spec, options)


def _check_cluster(options: Mapping[str, Any]) -> None:
    """Raises ConfigError, MissingExtra."""
    if not options["on"]:
        return
    from sordino.training.sweep.on_ray import check_ray

    if options["several"].processes > 1 or options["dry_run"]:
        raise ConfigError("this is for one machine", where="--processes, --dry-run", do="leave it out with --on")
    check_ray(options["on"])


def _run(spec: Spec, options: Mapping[str, Any]) -> None:
    from sordino.cli.sweep_display import SweepDisplay, show_result
    from sordino.cli.training_display import show_stopped
    from sordino.training.sweep.execute import dry_run_sweep, execute_sweep
    from sordino.training.sweep.on_ray import sweep_on_ray

    on, several = options["on"], options["several"]
    run = _sweep(spec, options)
    if several.to_launch:
        go_on = f"sordino sweep --resume {quote(str(run.folder))} --processes {several.processes}"
        raise click.exceptions.Exit(launch(several.processes, sys.argv[1:], go_on))
    from sordino.training.distributed import joined

    def load(model: str) -> BaseModel:
        return loaded_model(model, **asdict(run.loading))

    with joined() as strategy, SweepDisplay(run.spec) as display:
        if options["dry_run"]:
            dry_run_sweep(run, load, display.show, strategy)
            return
        how: Any = {
            "on_event": display.show,
            "should_stop": display.should_stop,
            "resume": options["resume"] is not None,
        }
        result = sweep_on_ray(run, on, **how) if on else execute_sweep(run, load, strategy=strategy, **how)
    if result is not None:
        show_result(result, run.folder)
    else:
        show_stopped(run.folder, "; all runs are saved.", command="sweep")


def _sweep(spec: Spec, options: Mapping[str, Any]) -> Sweep:
    from sordino.training.sweep.execute import Sweep, check_sweep, stored_sweep

    if options["resume"] is not None:
        return stored_sweep(options["resume"])
    machine: ModelChoice = options["machine"].to_train
    loading = Loading(machine.device, machine.dtype, machine.layers)
    begun = Sweep(spec, options["texts"], options["out_dir"], loading)
    check_sweep(begun, overwrite=options["overwrite"])
    return begun


def _spec(options: Mapping[str, Any]) -> Spec:
    """Every combination is checked. Raises ConfigError."""
    rest = TrainConfig(**{"steps": STEPS, **options["rest"]})
    fill_passes = "pass_tokens" not in options["rest"]
    factors: dict[str, Any] = {name: _values(name, options[name]) for name in FACTORS}
    return Spec(**factors, rest=rest, fill_passes=fill_passes, **options["trying"])


def _values(name: str, given: Sequence[str]) -> tuple[Any, ...]:
    """The values of a factor, typed with commas between them; words and paths, which may have commas, are one value."""
    if name == "lr" and not given:
        return (None,)
    kind = {"tokens": int, "lr": float, "seed": int}.get(name, str)
    parts: list[str] = []
    for text in given:
        whole = name == "init" and text.startswith(("text:", "file:"))
        parts += [text] if whole else map(str.strip, text.split(","))
    try:
        return tuple(map(kind, parts))
    except ValueError:
        flag = f"--{name}"
        raise ConfigError(
            "not numbers with commas between them", where=flag, got=", ".join(given), do=f"for instance {flag} 1,5,20"
        ) from None
