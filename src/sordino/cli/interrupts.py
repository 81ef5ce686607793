"""Ctrl-C and other requests to stop, for work that saves first."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sordino.cli.console import err, out


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
