"""list: the soft prompts of the library, as a table."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.cells import cell_len

from sordino.cli.console import err, one_line, out, print_json, shortened, show_table, warn
from sordino.cli.loading import ModelChoice, named_model_option
from sordino.cli.options import json_option, library_option
from sordino.library.entry import Entry
from sordino.library.library import Library
from sordino.prompts.description import attended, made_for
from sordino.prompts.kv_prompt import KVPrompt

_HEADINGS = ("name", "#tokens", "made for", "description")
_LONGEST_DESCRIPTION, _SHORTEST_DESCRIPTION = 60, 12
# Narrower terminals have no room for "HuggingFaceTB/".
_WIDE = 110
# Two edges, and three spaces between each two of four columns.
_BETWEEN_COLUMNS = 11


@click.command("list")
@named_model_option()
@library_option()
@json_option()
def list_(model: ModelChoice, library: Library, as_json: bool) -> None:
    """List the soft prompts in the library.

    A file that cannot be read is listed with the reason. With --model, only those that may fit that model, which is not loaded.
    """
    entries = library.scan()
    others = 0
    if model.model:
        from sordino.models.sizes import sizes_of

        base = sizes_of(model.model)
        fitting = [one for one in entries if one.parts and base.fit(one.parts).kind != "no"]
        entries, others = fitting, len(entries) - len(fitting)
    if as_json:
        print_json([entry.to_json() for entry in entries])
        return
    warn(*library.absences())
    if len(library.absences()) == len(library.folders):
        return
    if not entries and others:
        out.print(f"None of the {others} soft prompts of the library fits {one_line(model.model)}.")
    elif not entries:
        out.print(
            f"The library {library.folders[0]} is empty. Drop .zip files there, or make one with `sordino train`; "
            "`sordino demo` shows how."
        )
    else:
        _show_entries(entries)
    if entries and others:
        err.print(f"Not listed, as they do not fit {one_line(model.model)} or cannot be read: {others}.")
    if files := library.other_files():
        names = ", ".join(one_line(path.name) for path in files[:3]) + (", ..." if len(files) > 3 else "")
        err.print(f"Not listed, as only .zip files and folders are: {names}. `sordino install FILE` takes one in.")


def _show_entries(entries: Sequence[Entry]) -> None:
    """The table. On a narrow terminal, descriptions get the width that the other columns leave."""
    narrow = out.width < _WIDE
    rows = [_cells(entry, narrow=narrow) for entry in entries]
    taken = sum(max(map(cell_len, column)) for column in list(zip(_HEADINGS, *rows, strict=True))[:-1])
    room = min(_LONGEST_DESCRIPTION, max(_SHORTEST_DESCRIPTION, out.width - taken - _BETWEEN_COLUMNS))
    show_table(
        _HEADINGS,
        # Reasons are shown whole.
        (
            (*cells, text if entry.error else shortened(text, room))
            for entry, (*cells, text) in zip(entries, rows, strict=True)
        ),
        styles=("red" if entry.error else None for entry in entries),
    )


def _cells(entry: Entry, *, narrow: bool) -> tuple[str, str, str, str]:
    """name, tokens, made for, description. narrow: only what tells the models apart."""
    name, known = one_line(entry.name), entry.metadata
    if entry.error:
        return name, "", "", f"cannot be read: {one_line(entry.error)}"
    length = f"mixture of {entry.components}" if entry.components else f"{entry.n_tokens}{attended(known)}"
    length += " (KV)" if entry.kind == KVPrompt.kind else ""
    base = one_line(made_for(known, entry.d_model))
    if narrow:
        named = one_line(made_for(known, 0))
        base = ", ".join(one.rpartition("/")[2] for one in named.split(", ")) or f"{entry.d_model} wide"
    return name, length, base, known.description
