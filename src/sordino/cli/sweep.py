"""`sordino sweep`: which length, learning rate, start, method and model suit these texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sordino.cli.console import err, out, outlasting_readers
from sordino.cli.loading import loaded_model
from sordino.cli.options import device_option, dtype_option, refuse_with_resume, setting_options
from sordino.errors import BadInput, ConfigError
from sordino.training.config import ReadingConfig, TrainConfig
from sordino.training.sweep.grid import FACTORS, Spec

if TYPE_CHECKING:
    from sordino.models.base_model import BaseModel
    from sordino.training.sweep.execute import Sweep

T = TypeVar("T")
STEPS = 120


@click.command(short_help="Try many settings together and keep the best.")
@click.argument("data", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out-dir", type=click.Path(path_type=Path), help="The folder that gets everything; made if need be.")
@click.option(
    "--tokens", multiple=True, default=("20",), show_default=True, metavar="N,N", help="Virtual tokens to try."
)
@click.option("--lr", multiple=True, default=("0.25",), show_default=True, metavar="X,X", help="Learning rates to try.")
@click.option(
    "--init",
    multiple=True,
    default=("data",),
    show_default=True,
    metavar="A,B",
    help="Starts to try: data, vocab, labels, random; text:WORDS and file:SOFT_PROMPT in an --init of their own.",
)
@click.option("--seed", multiple=True, default=("0",), show_default=True, metavar="N,N", help="Seeds to try.")
@click.option("--method", multiple=True, default=("plain",), show_default=True, metavar="A,B", help="plain, residual.")
@click.option(
    "--model",
    "-m",
    multiple=True,
    default=("smollm2",),
    show_default=True,
    metavar="A,B",
    help="Base models to try, one after another in memory.",
)
@setting_options(Spec, "random", "full", "split_seed", given_as="trying", only_given=True)
@click.option("--steps", type=int, default=STEPS, show_default=True, help="Optimiser steps of a whole run.")
@setting_options(TrainConfig, "batch", "row_tokens", "pass_tokens", given_as="rest", only_given=True)
@click.option(
    "--heldout",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Texts for the final figures only; may be repeated.  [default: split off DATA]",
)
@setting_options(ReadingConfig, given_as="reading")
@click.option("--overwrite", is_flag=True, help="Begin anew where OUT_DIR holds a sweep.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="OUT_DIR",
    help="Go on with a sweep that was stopped or killed.",
)
@click.option("--dry-run", is_flag=True, help="Read the texts, measure what the sweep would cost, and stop.")
@device_option()
@dtype_option()
def sweep(**options: Any) -> None:
    """Try every combination of the values given on DATA, trained together on one base model at a time.

    All runs see the same three sets of texts. Those that do worse on the validation set end early (successive halving); the
    best gets a file, the finished ones are measured on held-out texts: a table, plots against each factor that was varied, all
    results as JSON, and what they say about three claims of arXiv 2104.08691.

    `sordino sweep TEXTS --tokens 5,20,50 --lr 0.1,0.25 --init data,vocab --out-dir SWEEP`

    Ctrl-C saves and says how to go on; so do SIGTERM, a closed terminal, and an output that nobody reads any more.
    """
    if options["resume"] is not None:
        refuse_with_resume("a sweep", besides=("resume",))
    elif not options["data"]:
        raise BadInput("there is nothing to train on", where="DATA", expected="text files or folders")
    elif options["out_dir"] is None:
        raise BadInput("there is no folder for the results", where="--out-dir", do="add --out-dir FOLDER")
    for path in (*options["data"], *options["heldout"], *filter(None, [options["resume"]])):
        if not path.exists():
            raise BadInput("no such file or folder", where=path, do="check the spelling")
    # Before torch is loaded: a typing error should not cost seconds.
    spec = _spec(options)
    with outlasting_readers():
        _run(spec, options)


def _run(spec: Spec, options: Mapping[str, Any]) -> None:
    from sordino.cli.sweep_display import SweepDisplay, show_result
    from sordino.training.sweep.execute import dry_run_sweep, execute_sweep

    asked = _sweep(spec, options)

    def load(model: str) -> BaseModel:
        return loaded_model(model, asked.dtype, asked.device)

    with SweepDisplay(asked.spec) as display:
        if options["dry_run"]:
            dry_run_sweep(asked, load, display.show)
            return
        resume = options["resume"] is not None
        result = execute_sweep(asked, load, resume=resume, on_event=display.show, should_stop=display.should_stop)
    if result is not None:
        show_result(result, asked.folder)
        return
    console = err if out.reader_left else out
    console.print("Stopped; all runs are saved.")
    console.print(f"Go on with: sordino sweep --resume {quote(str(asked.folder))}")


def _sweep(spec: Spec, options: Mapping[str, Any]) -> Sweep:
    from sordino.training.run import TextPaths
    from sordino.training.sweep.execute import Sweep, check_sweep, stored_sweep

    if options["resume"] is not None:
        return stored_sweep(options["resume"])
    texts = TextPaths(options["data"], options["heldout"], options["reading"].speaker)
    asked = Sweep(spec, texts, options["out_dir"], options["device"], options["dtype"])
    check_sweep(asked, overwrite=options["overwrite"])
    return asked


def _spec(options: Mapping[str, Any]) -> Spec:
    """Every combination is checked. Raises ConfigError."""
    factors: dict[str, Any] = {
        "tokens": _numbers("--tokens", options["tokens"], int),
        "lr": _numbers("--lr", options["lr"], float),
        "seed": _numbers("--seed", options["seed"], int),
        "init": _starts(options["init"]),
        "method": tuple(_parts(options["method"])),
        "model": tuple(_parts(options["model"])),
    }
    rest = TrainConfig(steps=options["steps"], **options["rest"])
    fill_passes = "pass_tokens" not in options["rest"]
    return Spec(
        **{factor: factors[factor] for factor in FACTORS}, rest=rest, fill_passes=fill_passes, **options["trying"]
    )


def _parts(values: Sequence[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",")]


def _starts(values: Sequence[str]) -> tuple[str, ...]:
    found: list[str] = []
    for value in values:
        # Words and paths may have commas.
        found += [value] if value.startswith(("text:", "file:")) else _parts([value])
    return tuple(found)


def _numbers(flag: str, values: Sequence[str], kind: Callable[[str], T]) -> tuple[T, ...]:
    try:
        return tuple(kind(part) for part in _parts(values))
    except ValueError:
        raise ConfigError(
            "not numbers with commas between them", where=flag, got=", ".join(values), do=f"for instance {flag} 1,5,20"
        ) from None
