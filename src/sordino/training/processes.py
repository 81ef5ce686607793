"""The processes of training runs: they give way to the server that started them, and outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from sordino.errors import SordinoError
from sordino.training.failure import Failure
from sordino.training.loop import LOWER

# Of at most 19: on a busy core a run still gets about a tenth.
_NICE = 10
# A process that the system kills when memory runs out cannot say so. Windows refuses memory instead.
_KILLED = -9


def command_of(*arguments: str, command: str = "train") -> list[str]:
    """`sordino train`, or another command, with these arguments."""
    return [sys.executable, "-m", "sordino", command, *arguments]


def start_process(command: Sequence[str], output: Path, errors: Path | None, *, cwd: Path) -> subprocess.Popen[bytes]:
    """A process at low priority that does not end with this one. output: the file for standard output. errors: for standard error;
    None: both go into `output`. Raises OSError.
    """
    env = {**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "200"}
    with output.open("wb") as out, (errors or output).open("ab" if errors is None else "wb") as err:
        if sys.platform == "win32":
            flags = subprocess.BELOW_NORMAL_PRIORITY_CLASS | subprocess.CREATE_NEW_PROCESS_GROUP
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd, env=env, creationflags=flags
            )
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd, env=env, start_new_session=True
        )
    with suppress(psutil.Error):
        # Before its threads are there, which take it over.
        psutil.Process(child.pid).nice(_NICE)
    with suppress(OSError):
        # Linux may share its cores out by session first, and by niceness within one: then the session has to be nice.
        Path(f"/proc/{child.pid}/autogroup").write_text(str(_NICE))
    return child


def is_alive(pid: int, born: float) -> bool:
    """Whether the process that was started at this time still runs; another may have its number by now."""
    try:
        process = psutil.Process(pid)
        return bool(abs(process.create_time() - born) < 1 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def interrupt(pid: int) -> None:
    """Do what Ctrl-C does: the run saves after its current step and ends."""
    with suppress(OSError):
        if sys.platform == "win32":
            os.kill(pid, signal.CTRL_BREAK_EVENT)
        else:
            os.kill(pid, signal.SIGINT)


def end_of(doing: str, code: int | None) -> Failure:
    """What is known of a process that wrote no failure itself. code: its exit code, None where another server started it."""
    if code is None:
        what = f"the {doing} was ended from outside, perhaps because memory ran out: if it was, {LOWER}"
    elif code == _KILLED:
        what = f"the {doing} was killed from outside, most likely because the machine's memory ran out: {LOWER}"
    else:
        what = f"the {doing} ended with {code}; its log says more"
    return Failure.of(SordinoError(what))
