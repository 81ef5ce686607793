"""sources: which soft prompts are alike, and which is the likeliest start for another."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from sordino.cli.console import err, one_line, out, table
from sordino.cli.options import json_option, library_option
from sordino.errors import BadInput, DoesNotFit, SordinoError
from sordino.prompts.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from sordino.library.library import Library


@click.command()
@click.argument("target", metavar="TARGET")
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@library_option()
@json_option()
def sources(target: str, prompts: tuple[str, ...], library: Library, as_json: bool) -> None:
    """Rank soft prompts as a start for another.

    TARGET is a soft prompt of the task or voice in question, trained for a few steps: the more alike another is, the likelier that
    `sordino train --init file:...` gains by it. PROMPTs are names or files; by default all of the library that
    were made for the same base model.
    """
    from sordino import formats
    from sordino.cli.loading import loaded_prompts
    from sordino.prompts.fit import check_one_base
    from sordino.prompts.similarity import ranked_sources

    own = formats.read(library.resolve(target))
    if prompts:
        found = loaded_prompts(library, prompts)
    else:
        found, left = {}, 0
        for label, prompt in _library_prompts(library):
            try:
                check_one_base([own, prompt], "compared")
            except DoesNotFit:
                left += 1
                continue
            if prompt.content_hash != own.content_hash:
                found[label] = prompt
        if left:
            err.print(f"Left out, as they were made for another base model: {left}.")
        if not found:
            raise BadInput("the library has no other soft prompt of this base model", where=target)
    ranked = ranked_sources(own, found)
    if as_json:
        rows = [{"source": s.label, "per_token": s.per_token, "pooled": s.pooled} for s in ranked]
        click.echo(json.dumps({"target": target, "sources": rows}, ensure_ascii=False, indent=2))
        return
    shown = table("start from", "#per token", "#pooled")
    for source in ranked:
        shown.add_row(one_line(source.label), f"{source.per_token:+.3f}", f"{source.pooled:+.3f}")
    out.print(shown)
    out.print(
        f"Cosines with {one_line(target)}: mean over all pairs of vectors, and of the mean vectors (arXiv 2110.07904)."
    )
    out.print("The first line is the likeliest to help; only a run from it tells.")


def _library_prompts(library: Library) -> list[tuple[str, SoftPrompt]]:
    """Every soft prompt of the library that can be read; mixtures are no start."""
    from sordino import formats

    read = []
    for entry in library.scan():
        if entry.components:
            continue
        try:
            read.append((entry.name, formats.read(library.open(entry))))
        except SordinoError as error:
            err.print(one_line(error.message))
    return read
