"""How much attention text gives a soft prompt, as typed on the command line."""

from __future__ import annotations

import click

from sordino.cli.options import Decorator
from sordino.errors import ConfigError
from sordino.prompts.attention import LEAST_STRENGTH, MOST_STRENGTH, Hold


def attention_options(default: str = "") -> tuple[Decorator, Decorator]:
    """`hold: str | None` and `strength: str | None`, as typed. default: what to say of it in the help."""
    shown = f"  {default}" if default else ""
    return (
        click.option(
            "--hold",
            metavar="T",
            help="Hold a prompt's share of attention from T tokens of text on; off: do not. For a mixture, one for all of its "
            f"components or one for each: T,T,...{shown}",
        ),
        click.option(
            "--strength",
            metavar="S",
            help=f"How much attention text gives a prompt, {LEAST_STRENGTH} to {MOST_STRENGTH:g}; 1: as the model computes it. "
            f"For a mixture, as for --hold.{shown}",
        ),
    )


def parsed_hold(text: str | None) -> Hold | list[Hold] | None:
    """ "128", "off", or several for a mixture's components. Raises ConfigError."""
    if text is None:
        return None
    try:
        found: list[Hold] = ["off" if part == "off" else int(part) for part in _parts(text)]
    except ValueError:
        raise ConfigError("not a hold", where="--hold", expected="a number of tokens, or off", got=text) from None
    return found[0] if len(found) == 1 else found


def parsed_strength(text: str | None) -> float | list[float] | None:
    """As `parsed_hold`."""
    if text is None:
        return None
    try:
        found = [float(part) for part in _parts(text)]
    except ValueError:
        raise ConfigError("not a strength", where="--strength", expected="a number", got=text) from None
    return found[0] if len(found) == 1 else found


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]
