"""`sordino serve` in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.waiting import WAIT


class Process:
    """A running command, its lines read as they come. memory: bytes of address space that it, and what it starts, may have.
    python: of an environment that has our package."""

    def __init__(
        self, *flags: str, env: Mapping[str, str], memory: int | None = None, python: str | Path = sys.executable
    ) -> None:
        # What it starts inherits the limit: each process of its own may have so much.
        limit = [] if memory is None else ["sh", "-c", f'ulimit -v {memory >> 10} && exec "$@"', "sh"]
        self.process = subprocess.Popen(
            [*limit, python, "-m", "sordino", "serve", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # What it keeps is the test's, not the user's.
            env={**os.environ, **({"XDG_DATA_HOME": config} if (config := env.get("XDG_CONFIG_HOME")) else {}), **env},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def wait_for(self, pattern: str, seconds: float = WAIT) -> re.Match[str]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := re.search(pattern, "".join(self.lines)):
                return found
            assert self.process.poll() is None, "".join(self.lines)
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} in {self.lines}")

    def close(self) -> None:
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def ended(self, seconds: float = WAIT) -> int:
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def url(self) -> str:
        """The address, once it is ready."""
        return self.wait_for(r"Ready: (?:\S+ )?at (http://\S+),").group(1)


@contextmanager
def started(
    *flags: str, env: Mapping[str, str], memory: int | None = None, python: str | Path = sys.executable
) -> Iterator[Process]:
    process = Process(*flags, env=env, memory=memory, python=python)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait(WAIT)
        process.close()
