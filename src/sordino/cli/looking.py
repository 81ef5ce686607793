"""What inspect, blend and prune share: options, texts by a short name each, and the soft prompt that is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sordino.cli.console import err, one_line, warn
from sordino.cli.options import Decorator
from sordino.errors import BadInput
from sordino.library.names import is_mixture_name
from sordino.library.outputs import check_new

if TYPE_CHECKING:
    from sordino.prompts.soft_prompt import SoftPrompt
    from sordino.texts.pieces import Piece

PATHS = click.Path(path_type=Path)


def limit_option(default: int | None, help: str) -> Decorator:
    """`limit: int`, or `int | None` without a default."""
    return click.option(
        "--limit", type=click.IntRange(0), default=default, show_default=default is not None, metavar="N", help=help
    )


def row_tokens_option() -> Decorator:
    """`row_tokens: int`."""
    return click.option(
        "--row-tokens",
        type=click.IntRange(2),
        default=128,
        show_default=True,
        metavar="N",
        help="Length of the windows that texts are cut into.",
    )


def pass_tokens_option() -> Decorator:
    """`pass_tokens: int`."""
    return click.option(
        "--pass-tokens",
        type=click.IntRange(1),
        default=4096,
        show_default=True,
        metavar="N",
        help="Most positions in one forward pass; lower it if memory runs out. The result is the same.",
    )


def picture_option(told: str) -> Decorator:
    """`picture: Path | None`."""
    return click.option("--picture", type=PATHS, metavar="FILE", help=told)


def overwrite_option() -> Decorator:
    """`overwrite: bool`."""
    return click.option("--overwrite", is_flag=True, help="Replace files that exist.")


def force_option() -> Decorator:
    """`force: bool`."""
    return click.option(
        "--force", is_flag=True, help="Take a soft prompt that was made for another model of the same width."
    )


def check_out(path: Path | None, *, overwrite: bool) -> None:
    """As `check_new`, for the soft prompt that is made."""
    if path is not None and (path.suffix.lower() != ".zip" or is_mixture_name(path.name)):
        raise BadInput(
            "one soft prompt is written as .zip", where=path, do="name it so; sordino convert has the other formats"
        )
    check_new(path, overwrite=overwrite)


def written(prompt: SoftPrompt, path: Path, *, overwrite: bool) -> None:
    """Write a soft prompt and say so. Raises BadInput for a file that appeared meanwhile."""
    from sordino import formats

    check_new(path, overwrite=overwrite)
    for line in formats.write(prompt, path, to="kobold", force=True):
        warn(line)
    err.print(f"Written: {path} ({prompt.n_tokens} virtual tokens)")


def texts_of(paths: Sequence[Path], speaker: str | None) -> dict[str, Sequence[Piece]]:
    """The pieces of each path by a short name. Raises DataError, BadInput."""
    from sordino.texts.reading import read_pieces

    if len(set(paths)) < len(paths):
        raise BadInput("a text was given twice", got=", ".join(map(str, paths)))
    found: dict[str, Sequence[Piece]] = {}
    for label, path in zip(short_names(paths), paths, strict=True):
        reading = read_pieces([path], speaker=speaker)
        for note in reading.notes:
            err.print(one_line(note))
        found[label] = reading.pieces
    return found


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as it takes to tell them apart."""
    longest = max((len(path.parts) for path in paths), default=1)
    for count in range(1, longest + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return [one_line(name) for name in names]
