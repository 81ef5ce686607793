"""The options that say how tokens are drawn, and the settings made from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from sordino.engine.sampling import Sampling

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def sampling_options(command: Decorated) -> Decorated:
    """How tokens are drawn: keyword arguments by the names of `Sampling`'s fields, None where not given."""
    options = [
        click.option("--max-tokens", "-n", type=int, metavar="N", help="Most new tokens.  [default: 120]"),
        click.option(
            "--temperature",
            "-t",
            type=float,
            metavar="X",
            help="Below 1 tamer, above 1 wilder, 0 always the likeliest.  [default: 0.8]",
        ),
        click.option(
            "--top-k", type=int, metavar="K", help="Draw from the K likeliest tokens; 0 from all.  [default: 0]"
        ),
        click.option(
            "--top-p",
            type=float,
            metavar="P",
            help="Draw from the likeliest tokens that share P of the chances.  [default: 0.95]",
        ),
        click.option(
            "--min-p",
            type=float,
            metavar="P",
            help="Leave out tokens under P times the likeliest one's chance.  [default: 0]",
        ),
        click.option(
            "--repetition-penalty", type=float, metavar="X", help="Above 1: avoid tokens that were there.  [default: 1]"
        ),
        click.option(
            "--stop",
            multiple=True,
            metavar="TEXT",
            help="Stop in front of this text; may be repeated. In bash, $'\\n' is a line end.",
        ),
        click.option(
            "--force", is_flag=True, help="Use a soft prompt that was made for another model of the same width."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def sampling_of(given: Mapping[str, Any]) -> Sampling:
    """The options that were given; what was not has Sampling's own default. Raises ConfigError."""
    from sordino.engine.sampling import Sampling

    return Sampling(**{key: value for key, value in given.items() if value is not None})
