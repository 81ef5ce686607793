"""How much attention text gives a soft prompt, as typed on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from sordino.cli.options import Decorator
from sordino.errors import ConfigError
from sordino.prompts.attention import LEAST_STRENGTH, MOST_STRENGTH


def attention_options(default: str = "") -> tuple[Decorator, Decorator]:
    """`hold` and `strength`: a value, a list for a mixture's components, or None. default: what to say of it in the help."""
    shown = f"  {default}" if default else ""
    return (
        click.option(
            "--hold",
            metavar="T",
            callback=_each(_hold, "a number of tokens, or off"),
            help="Hold a prompt's share of attention from T tokens of text on; off: do not. For a mixture, one for all of its "
            f"components or one for each: T,T,...{shown}",
        ),
        click.option(
            "--strength",
            metavar="S",
            callback=_each(float, "a number"),
            help=f"How much attention text gives a prompt, {LEAST_STRENGTH} to {MOST_STRENGTH:g}; 1: as the model computes it. "
            f"For a mixture, as for --hold.{shown}",
        ),
    )


def _each(kind: Callable[[str], object], expected: str) -> Callable[..., Any]:
    """A callback that reads "128", or "128,off" for a mixture's components. Raises ConfigError."""

    def read(context: click.Context, parameter: click.Parameter, text: str | None) -> Any:
        if text is None:
            return None
        try:
            found = [kind(part.strip()) for part in text.split(",")]
        except ValueError:
            where = parameter.opts[0]
            raise ConfigError("not understood", where=where, expected=expected, got=text) from None
        return found[0] if len(found) == 1 else found

    return read


def _hold(text: str) -> object:
    return text if text == "off" else int(text)


@contextmanager
def naming_flags() -> Iterator[None]:
    """An error about hold or strength names the option."""
    try:
        yield
    except ConfigError as error:
        if error.where in ("hold", "strength"):
            error.where = f"--{error.where}"
        raise
