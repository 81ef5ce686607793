"""Computing next to the engine's thread without slowing it down."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_thread_of_its_own(make: Callable[[], T]) -> T:
    """`make()`, in a thread that ends afterwards.

    OpenMP keeps a team of threads for every thread that has computed with it, as long as that thread lives. Once there are more of
    them than cores, all teams sleep between two products instead of spinning, and the engine takes half as long again (LOG.md). So
    only the engine's own thread may compute and live on.
    """
    made: Future[T] = Future()

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException as error:
            made.set_exception(error)

    # A daemon: a program that is interrupted does not wait for it.
    thread = threading.Thread(target=run, daemon=True, name="computing")
    thread.start()
    thread.join()
    return made.result()
