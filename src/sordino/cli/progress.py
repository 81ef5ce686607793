"""Progress bars on standard error, where it is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sordino.cli.console import err


@contextmanager
def measuring_bar(what: str = "Measuring") -> Iterator[Callable[[int, int], None]]:
    """A bar for something that reports (done, total). It goes when that has ended."""
    with Progress(
        TextColumn(what), BarColumn(30), TaskProgressColumn(), TimeRemainingColumn(), console=err, transient=True
    ) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def step_bar(*fields: str, named: bool = False) -> Progress:
    """A bar of training steps. fields: what stands behind the step, set by `update`. named: several runs, each by its name."""
    shown = "".join(f"{{task.fields[{field}]}}" for field in fields)
    return Progress(
        *((TextColumn("{task.description}"),) if named else ()),
        BarColumn(30),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}  " + shown),
        TimeRemainingColumn(),
        console=err,
    )
