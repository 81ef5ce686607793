"""How tests wait: for what is meant, as long as a machine with much else to do may take."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable

# Seconds. A wait ends when its condition holds, so a long one lets nothing through that a short one would not.
WAIT = 240.0


def until(holds: Callable[[], object], what: Callable[[], object] | str = "", seconds: float = WAIT) -> None:
    """what: what is said if it never holds."""
    began = time.monotonic()
    while not holds():
        waited = time.monotonic() - began
        assert waited < seconds, what() if callable(what) else what
        # After a long wait it asks less often, and leaves the processor to what it waits for.
        time.sleep(min(max(0.01, waited / 20), 0.2))


def free_port() -> int:
    """A port for a program that cannot choose one itself. It listens seconds later, so the port is none of those that the
    system gives to other programs meanwhile.
    """
    while True:
        port = random.SystemRandom().randrange(12_000, 32_000)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
