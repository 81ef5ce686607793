"""`sordino sweep`: which length, learning rate, start, method and model suit these texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from sordino.cli.console import outlasting_readers
from sordino.cli.options import LARGEST_SEED, device_option, dtype_option
from sordino.errors import BadInput, ConfigError

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
@click.option(
    "--random", type=click.IntRange(1), metavar="N", help="Try N combinations by chance.  [default: all of them]"
)
@click.option(
    "--full", is_flag=True, help="Every run to its end, for plots; else the worse half ends at 1/8, 1/4 and 1/2."
)
@click.option(
    "--steps", type=click.IntRange(1), default=STEPS, show_default=True, help="Optimiser steps of a whole run."
)
@click.option("--batch", default=4, show_default=True, help="Examples a step.")
@click.option("--row-tokens", default=128, show_default=True, help="Longest example, in tokens.")
@click.option(
    "--heldout",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Texts for the final figures only; may be repeated.  [default: split off DATA]",
)
@click.option("--speaker", help="In chat logs: whose turns to learn.  [default: everybody but the user]")
@click.option(
    "--split-seed",
    type=click.IntRange(0, LARGEST_SEED),
    default=0,
    show_default=True,
    metavar="N",
    help="Which texts are held out, for all runs alike, and what --random takes.",
)
@click.option(
    "--pass-tokens",
    type=int,
    help="Most positions in one forward pass.  [default: 1024; on a GPU, what its memory holds]",
)
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
        _refuse_settings(click.get_current_context())
    elif not options["data"]:
        raise BadInput("there is nothing to train on", where="DATA", expected="text files or folders")
    elif options["out_dir"] is None:
        raise BadInput("there is no folder for the results", where="--out-dir", do="add --out-dir FOLDER")
    for path in (*options["data"], *options["heldout"], *filter(None, [options["resume"]])):
        if not path.exists():
            raise BadInput("no such file or folder", where=path, do="check the spelling")
    factors = {
        "tokens": _numbers("--tokens", options["tokens"], int),
        "lr": _numbers("--lr", options["lr"], float),
        "seed": _seeds(options["seed"]),
        "init": _starts(options["init"]),
        "method": tuple(_parts(options["method"])),
        "model": tuple(_parts(options["model"])),
    }
    from sordino.cli.sweep_run import run

    with outlasting_readers():
        run({**options, **factors})


def _parts(said: Sequence[str]) -> list[str]:
    return [part.strip() for value in said for part in value.split(",")]


def _starts(said: Sequence[str]) -> tuple[str, ...]:
    found: list[str] = []
    for value in said:
        # Words and paths may have commas.
        found += [value] if value.startswith(("text:", "file:")) else _parts([value])
    return tuple(found)


def _numbers(flag: str, said: Sequence[str], kind: Callable[[str], T]) -> tuple[T, ...]:
    try:
        return tuple(kind(part) for part in _parts(said))
    except ValueError:
        raise ConfigError(
            "not numbers with commas between them", where=flag, got=", ".join(said), do=f"for instance {flag} 1,5,20"
        ) from None


def _seeds(said: Sequence[str]) -> tuple[int, ...]:
    seeds = _numbers("--seed", said, int)
    for seed in seeds:
        if not 0 <= seed <= LARGEST_SEED:
            raise ConfigError("no such seed", where="--seed", expected=f"0 to {LARGEST_SEED}", got=seed)
    return seeds


def _refuse_settings(context: click.Context) -> None:
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name != "resume"
        and context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]
    if given:
        raise ConfigError(
            "a sweep that is resumed goes on as it began",
            where=", ".join(given),
            do="leave that out, or start a new one",
        )
