"""Where the commands print: `out` for results, `err` for everything about the run (progress, warnings, errors).

Both are plain text when they are not a terminal. Markup and highlighting are off: names and texts come from strangers'
files, and "[bold]" in one is text.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

# Piped output is read by grep and spreadsheets, which want a row on one line.
_PIPED_WIDTH = 200
_LABEL, _BEGINNING = 60, 45
# 128 and SIGPIPE's number.
_BROKEN_PIPE = 141


class Stream(Console):
    """A console whose reader may leave (`| head`): that ends the program, except where `outlasting_readers` holds."""

    outlasts = False
    reader_left = False

    def on_broken_pipe(self) -> None:
        if not self.outlasts:
            super().on_broken_pipe()
        self.reader_left = True
        self.silence()
        if self is out:
            err.print("The output was closed (broken pipe).")

    def silence(self) -> None:
        """What is printed from now on goes nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


@contextmanager
def outlasting_readers() -> Iterator[None]:
    """For work that must outlast a closed output: it checks `reader_left`, saves, and ends with status 141, as a shell reports a
    broken pipe.
    """
    out.outlasts = err.outlasts = True
    try:
        yield
        if out.reader_left or err.reader_left:
            raise click.exceptions.Exit(_BROKEN_PIPE)
    finally:
        out.outlasts = err.outlasts = False


def _console(*, stderr: bool) -> Stream:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream is not None and stream.isatty() else _PIPED_WIDTH
    return Stream(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=True, width=width)


out = _console(stderr=False)
err = _console(stderr=True)


def is_interactive() -> bool:
    """Whether there is somebody to answer a question."""
    return sys.stdin is not None and sys.stdin.isatty()


def printable(text: str) -> str:
    """`text` from outside, safe to show: other control characters than line breaks and tabs are replaced.

    So are direction overrides. An escape sequence in a file's description could retitle the terminal or hide a line.
    """
    return "".join(char if _is_safe(char) else "\ufffd" for char in text.replace("\r\n", "\n"))


def _is_safe(char: str) -> bool:
    return char in "\n\t" or (unicodedata.category(char) not in ("Cc", "Cs") and char not in _DIRECTIONS)


# Bidirectional overrides and isolates: they make a line show in another order than it is written.
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def one_line(text: str) -> str:
    """`printable`, with runs of white space made one space: for table cells and headings."""
    return " ".join(printable(text).split())


def table(*columns: str, title: str = "") -> Table:
    """An empty table in the one style of all commands. "#name" is a right-aligned column "name"."""
    made = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        number = column.startswith("#")
        made.add_column(column.removeprefix("#"), justify="right" if number else "left", overflow="fold")
    return made


def warn(message: str) -> None:
    """One `warning:` line on stderr."""
    err.print(f"warning: {one_line(message)}", style="yellow")


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """JSON on standard output, on one line without `indent`; escaped where the output's encoding lacks a character."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent)
    click.echo(text)


def brackets(interval: tuple[float, float] | None, form: str, *, times: float = 1) -> str:
    """An interval as `[1.2, 3.4]`, its ends in the given form; "" for none."""
    return "" if interval is None else f"[{', '.join(form.format(times * end) for end in interval)}]"


def shortened(text: str, longest: int) -> str:
    """On one line, and cut to `longest` characters."""
    line = one_line(text)
    return line if len(line) <= longest else line[: longest - 3] + "..."


def heading(kind: str, label: str) -> str:
    """What a line of a table of results is about. kind: of `evaluation.conditions`, or of several soft prompts together."""
    label = one_line(label)
    # Instructions that begin alike may end differently.
    label = label if len(label) <= _LABEL else f"{label[:_BEGINNING]}...{label[_BEGINNING + 3 - _LABEL :]}"
    if kind in ("instruction", "examples"):
        return f'"{label}"'
    if kind == "mean member":
        return f"mean of {label}"
    return f"{kind} {label}" if kind in ("soft prompt", "mixture", "best member", "ensemble") else label
