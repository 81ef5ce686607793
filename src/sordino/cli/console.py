"""Where the commands print: `out` for results, `err` for everything about the run (progress, warnings, errors).

Both are plain text when they are not a terminal. Markup and highlighting are off: names and texts come from strangers'
files, and "[bold]" in one is text.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sordino.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sordino.evaluation.confidence import Table as MeasuredTable
    from sordino.library.outputs import Outputs
    from sordino.prompts.kv_prompt import SinglePrompt

# Piped output is read by grep and spreadsheets, which want a row on one line. Who sets COLUMNS wants another width.
_PIPED_WIDTH = 200
_WIDTH = re.compile("[1-9][0-9]*")
# Ours is on the first line, click's below the usage.
_ERROR = re.compile(r"\A(internal )?error:|^error:", re.MULTILINE)
# 128 and SIGPIPE's number.
BROKEN_PIPE = 141


class Stream(Console):
    """A console whose reader may leave (`| head`): that ends the program, except where `outlasting_readers` holds."""

    outlasts = False
    reader_left = False

    def on_broken_pipe(self) -> None:
        self.reader_left = True
        self.silence()
        if not self.outlasts:
            # click's Exit is a RuntimeError, which callers catch and threads report.
            raise SystemExit(BROKEN_PIPE)
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
            raise click.exceptions.Exit(BROKEN_PIPE)
    finally:
        out.outlasts = err.outlasts = False


def _console(*, stderr: bool) -> Stream:
    stream = sys.stderr if stderr else sys.stdout
    is_known = (stream is not None and stream.isatty()) or _WIDTH.fullmatch(os.environ.get("COLUMNS", ""))
    width = None if is_known else _PIPED_WIDTH
    return Stream(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=True, width=width)


out = _console(stderr=False)
err = _console(stderr=True)


def is_interactive() -> bool:
    """Whether there is somebody to answer a question."""
    return sys.stdin is not None and sys.stdin.isatty()


def check_confirmable(command: str) -> None:
    """Raises ConfigError where there is nobody to confirm what a command does."""
    if not is_interactive():
        raise ConfigError("there is no terminal to confirm this at", where=command, do="add --yes")


def printable(text: str) -> str:
    """`text` from outside, safe to show: control characters, except line breaks and tabs, and direction overrides are replaced.

    An escape sequence in a file's description could retitle the terminal or hide a line.
    """
    return _UNSAFE.sub("\ufffd", text.replace("\r\n", "\n"))


# Control characters, surrogates, and bidirectional overrides and isolates, which show a line in another order than it is written.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    """`printable`, with runs of white space made one space: for table cells and headings."""
    return " ".join(printable(text).split())


def show_table(
    columns: Iterable[str],
    rows: Iterable[Iterable[str]],
    *,
    title: str = "",
    styles: Iterable[str | None] = (),
    explanation: Iterable[str] = (),
) -> None:
    """Print a table of text cells. "#name" is a right-aligned column "name". title: above it. styles: of the rows. explanation:
    lines below it, and an empty one.
    """
    if title:
        out.print(one_line(title), style="bold")
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        number = column.startswith("#")
        shown.add_column(_cell(column.removeprefix("#")), justify="right" if number else "left", overflow="fold")
    for row, style in zip_longest(rows, styles):
        shown.add_row(*map(_cell, row), style=style)
    out.print(shown)
    if lines := list(explanation):
        out.print("\n".join(lines), end="\n\n")


def show_measured(found: MeasuredTable, explanation: Iterable[str] = ()) -> None:
    show_table(found.columns, found.rows, title=found.title, explanation=explanation)


def _cell(text: str) -> str:
    """`printable`, on one line; the spaces stay as they are."""
    return re.sub(r"[^\S ]+", " ", printable(text))


def warn(*messages: str) -> None:
    """A `warning:` line each on stderr."""
    for message in messages:
        err.print(f"warning: {one_line(message)}", style="yellow")


def note(*lines: str) -> None:
    """Lines about the run, from outside or not, on stderr."""
    for line in lines:
        err.print(one_line(line))


def show_error(text: str) -> None:
    """An error on stderr, its first word, "error:", in red."""
    shown = Text(text)
    shown.highlight_regex(_ERROR, "bold red")
    err.print(shown)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """JSON on standard output, on one line without `indent`. Escaped: what `printable` replaces, and where the output's encoding
    lacks a character, all that is not ASCII.
    """
    text = _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False, indent=indent))
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent)
    click.echo(text)


def shortened(text: str, longest: int) -> str:
    """On one line, and cut to `longest` characters."""
    line = one_line(text)
    return line if len(line) <= longest else line[: longest - 3] + "..."


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C stops the run after its step, the second stops the program at once. SIGTERM, a closed terminal and a closed
    output stop the run like the first. So does Ctrl-Break on Windows, the only signal that the page can send there.
    """
    stopping = False
    known = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP", "SIGBREAK")]
    # Whoever starts a run under nohup wants it to outlast its terminal.
    numbers = [signal.SIGINT, *(one for one in known if one is not None and signal.getsignal(one) != signal.SIG_IGN)]
    # Checked now: a closed terminal no longer counts as one, and printing to it raises.
    terminals = [stream for stream in (out, err) if stream.file.isatty()]

    def ask(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        restore()
        if number == getattr(signal, "SIGHUP", None):
            for stream in terminals:
                stream.silence()
        err.print("Stopping after this step ... (Ctrl-C again stops at once)")

    before = {number: signal.signal(number, ask) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield lambda: stopping or out.reader_left or err.reader_left
    finally:
        restore()


def write_prompt(outputs: Outputs, prompt: SinglePrompt) -> dict[str, Any]:
    """Write a soft prompt. Returns what it is, for JSON. Raises BadInput for a file that appeared meanwhile, StorageError."""
    warn(*outputs.write(prompt))
    err.print(f"Written: {outputs.target} ({prompt.n_tokens} virtual tokens)")
    return {"path": str(outputs.target), "content_hash": prompt.content_hash, "n_tokens": prompt.n_tokens}


def show_picture(figure: Figure, path: Path) -> None:
    """Write a picture. Raises StorageError."""
    from sordino.evaluation.pictures import write_picture

    write_picture(figure, path)
    err.print(f"Picture: {path}")
