"""One write into a library, again and again, in processes that are killed before one of its steps on the disk each.

    python -m tests.library.kill_me OPERATION FOLDER

Makes FOLDER/0, FOLDER/1 and so on: each began as FOLDER/before and was left by a kill at the next step; in the last one the
operation came to its end.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sordino.library import packaged
from sordino.library.editing import edit
from sordino.library.library import Library
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.prompt_files import matrix

# Audit events that are raised before a change of the disk.
_STEPS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
TRASHED = "old.zip"


def fresh(name: str = "new", seed: int = 9) -> SoftPrompt:
    return SoftPrompt(matrix(seed, 3, 8), Metadata(name=name))


OPERATIONS: dict[str, Callable[[Library], object]] = {
    "add": lambda library: library.add(fresh(), name="new"),
    "replace": lambda library: library.add(fresh("keeper"), name="keeper", replace=True),
    "replace another kind": lambda library: library.add(fresh("both"), name="both", replace=True),
    "remove": lambda library: library.remove("keeper"),
    "remove a folder": lambda library: library.remove("unpacked"),
    "undo": lambda library: library.restore(TRASHED),
    "rename": lambda library: edit(library.entry("keeper").path, {"name": "The other keeper"}),
    "packaged": lambda library: packaged.write_packaged(library.folders[0]),
    "seed": lambda library: packaged.seed(library.folders[0] / "empty"),
}


def main(operation: str, folder: Path) -> int:
    for step in range(500):
        place = folder / str(step)
        shutil.copytree(folder / "before", place)
        child = os.fork()
        if child == 0:
            kill_before(step, place)
            OPERATIONS[operation](Library([place]))
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return 0
    return 1


def kill_before(step: int, folder: Path) -> None:
    left = iter(range(step))

    def count(event: str, given: tuple[Any, ...]) -> None:
        # Where a file is made, or has another name or content.
        if event not in _STEPS or (event == "open" and not (given[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        if event == "open" and not str(given[0]).startswith(str(folder)):
            return
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    flush = os.fsync

    def counted_flush(descriptor: int) -> None:
        count("os.truncate", ())
        flush(descriptor)

    os.fsync = counted_flush
    sys.addaudithook(count)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], Path(sys.argv[2])))
