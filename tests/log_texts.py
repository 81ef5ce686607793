"""A folder of texts in one voice, to train on, and a training loop that is asked to stop."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

LOG = "The keeper wrote of the lamp and the sea, and of the ships that went by in the fog. "


def write_log(folder: Path, text: str = LOG) -> Path:
    """Twelve texts of three lengths."""
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.txt").write_text(f"Day {number}. " + text * (number % 3 + 3))
    return folder


def stopping(loop: Callable[..., Any], after: int) -> Callable[..., Any]:
    """A training loop that is asked to stop after so many steps, as by Ctrl-C."""
    steps = count(1)
    return lambda *given, **more: loop(*given, **{**more, "should_stop": lambda: next(steps) == after})
