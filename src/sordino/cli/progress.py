"""Progress bars on standard error, where it is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from sordino.cli.console import err


def share_bar() -> Progress:
    """A bar of how much is done of something. It goes when that has ended."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(30),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )


@contextmanager
def measuring_bar(what: str = "Measuring", *, at_once: bool = True) -> Iterator[Callable[[int, int], None]]:
    """`share_bar`, driven by reports of (done, total). at_once: show it before the first report."""
    with share_bar() as bar:
        task = bar.add_task(what, visible=at_once)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


@contextmanager
def download_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes that have arrived, for something that reports (done, total). It is there from the first report on."""
    with Progress(BarColumn(30), DownloadColumn(), TimeRemainingColumn(), console=err, transient=True) as bar:
        task = bar.add_task("", visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total or None, visible=True)


def step_bar(state: str, *, named: bool = False) -> Progress:
    """A bar of training steps. state: what follows the step number. named: for several runs, each with its name."""
    return Progress(
        *((TextColumn("{task.description}"),) if named else ()),
        BarColumn(30),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}" + state),
        TimeRemainingColumn(),
        console=err,
    )
