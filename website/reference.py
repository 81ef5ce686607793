"""docs/cli.md, made from the commands' own help, docs/python.md, from docstrings, and docs/http.md, from the OpenAPI document.

`python -m website.reference [--check] docs/cli.md docs/python.md docs/http.md`
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from sordino.cli import COMMANDS, main
from website.http_page import http_reference
from website.python_page import python_reference

_WIDTH = 100

_HEAD = """# The command line

This page is made from the commands' own help by `make docs`; do not edit it.

| Exit code | Meaning |
|---|---|
| 0 | done |
| 1 | it did not work: the disk, the memory, training that went wrong, or `sordino doctor` found something amiss |
| 2 | wrong input: a file, a name, a flag; nothing was written |
| 70 | a bug in Sordino; please report it |
| 130 | interrupted (Ctrl-C) |
| 141 | the output was closed before its end, as by a pipe to `head`; training saved and stopped |

Results go to standard output, and so does what `train` and `demo` report of their run; progress, warnings and errors go to standard
error. An error is one line that begins with `error:`; where a flag is wrong, it follows the usage.

| Environment variable | Meaning |
|---|---|
| `SORDINO_LIBRARY` | the library's folders, separated as in `PATH`; the first is written to, and `--library` wins |
| `SORDINO_CACHE` | where base models are unpacked and converted to |
| `SORDINO_DEBUG` | `1`: show the traceback of an error |
| `NO_COLOR` | `1`: no colours; there are none either where the output is not a terminal |

The shell completes commands and options with Tab after `eval "$(_SORDINO_COMPLETE=bash_source sordino)"` in `~/.bashrc`,
`eval "$(_SORDINO_COMPLETE=zsh_source sordino)"` in `~/.zshrc`, or `_SORDINO_COMPLETE=fish_source sordino | source` in
`~/.config/fish/completions/sordino.fish`.
"""


def reference() -> str:
    """The whole page."""
    root = main.context_class(
        main, info_name="sordino", terminal_width=_WIDTH, max_content_width=_WIDTH, **main.context_settings
    )
    pages = [_page(root, main)]
    for name in COMMANDS:
        command = main.get_command(root, name)
        assert command is not None
        pages += _pages(click.Context(command, info_name=name, parent=root), command)
    return "\n".join([_HEAD, *pages])


def _pages(context: click.Context, command: click.Command) -> list[str]:
    """The command's page, followed by those of its own commands."""
    own = command.commands if isinstance(command, click.Group) else {}
    below = (_page(click.Context(each, info_name=name, parent=context), each) for name, each in own.items())
    return [_page(context, command), *below]


def _page(context: click.Context, command: click.Command) -> str:
    return f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"


PAGES: dict[str, Callable[[], str]] = {"cli.md": reference, "python.md": python_reference, "http.md": http_reference}


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail where a page is out of date.")
@click.argument("pages", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
def write_reference(pages: tuple[Path, ...], *, check: bool) -> None:
    """Write the reference pages cli.md, python.md and http.md."""
    for page in pages:
        if page.name not in PAGES:
            raise click.ClickException(f"{page}: expected {' or '.join(PAGES)}")
        text = PAGES[page.name]()
        if not check:
            page.write_text(text, encoding="utf-8", newline="\n")
        elif not page.is_file() or page.read_text(encoding="utf-8") != text:
            raise click.ClickException(f"{page} is out of date; run `make docs`")


if __name__ == "__main__":
    write_reference()
