"""Loading a base model in the background, with progress, until it is served or cancelled.

Download and conversion run in a process of their own, which can be killed at any time. Only reading the weights is done here; after
a cancellation they are discarded.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from sordino.engine.choice import why_torch
from sordino.engine.config import EngineOptions
from sordino.errors import SordinoError
from sordino.models import files
from sordino.server.errors import Refused, refused
from sordino.server.serving import Idle, Serving
from sordino.server.start import Models
from sordino.storage import write_bytes

log = logging.getLogger("sordino.server")

_MOST_RECENT = 8


class Recent:
    """The models that were served, the latest first, in a JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        try:
            names = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def add(self, name: str) -> None:
        """Where the file cannot be written, the list stays as it is."""
        name = files.absolute_name(name)
        names = [name, *(other for other in self.names() if other != name)][:_MOST_RECENT]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self._path, json.dumps(names, indent=1).encode())
        except (OSError, SordinoError):
            return


class Loader:
    """Changes the model. options: of `sordino serve`. announce: called with what is served from now on.

    May be used from any thread. Loads one model at a time.
    """

    def __init__(
        self,
        models: Models,
        idle: Idle,
        announce: Callable[[Serving | Idle], None],
        recent: Recent,
        options: EngineOptions,
    ) -> None:
        self.models, self.recent, self.options = models, recent, options
        self._idle, self._announce = idle, announce
        self._lock = threading.Lock()
        self._attempt: _Attempt | None = None
        self._error, self._loads = "", 0

    def status(self) -> dict[str, Any]:
        """loading: the model's name, what is being done, and, while it is downloaded, the bytes that have arrived and those that
        there are. error: why the last model could not be loaded. loads: how many have ended, one way or another: a tab that
        looks now and then misses a short one.
        """
        loads, attempt = self._loads, self._attempt
        return {"loading": attempt.status() if attempt else None, "error": self._error, "loads": loads}

    def start(self, name: str) -> None:
        """Load a model in the background. Raises Refused (409) while another is loading, ModelError."""
        files.resolve(name)
        with self._lock:
            if self._attempt is not None:
                raise Refused(409, f"{self._attempt.name} is being loaded: cancel that first")
            self._attempt, self._error = _Attempt(name), ""
        threading.Thread(target=self._load, args=(self._attempt,), daemon=True, name="loading").start()

    def cancel(self) -> None:
        attempt = self._attempt
        if attempt is not None:
            attempt.cancel()

    def unload(self) -> None:
        self.cancel()
        self.models.unload(lambda: self._announce(self._idle))

    def _load(self, attempt: _Attempt) -> None:
        try:
            attempt.prepare(as_it_is=runs_as_it_is(attempt.name, self.options.runner))
            if not attempt.cancelled:
                attempt.line = "reading the weights"
                self.models.change(attempt.name, self._announce, still_wanted=lambda: not attempt.cancelled)
            if not attempt.cancelled:
                self.recent.add(attempt.name)
        except SordinoError as error:
            self._error = "" if attempt.cancelled else refused(error).message
        except Exception:
            # A bug, or a model file that makes a library fail: the page must not wait forever.
            log.exception("the model %r cannot be loaded", attempt.name)
            self._error = f"{attempt.name} cannot be loaded because of an error in the server: see its log"
        finally:
            self._attempt, self._loads = None, self._loads + 1


class _Attempt:
    """One model while it is being loaded."""

    def __init__(self, name: str) -> None:
        self.name, self.line, self.cancelled = name, "preparing", False
        self._bytes: tuple[int, int] | None = None
        self._process: subprocess.Popen[str] | None = None

    def status(self) -> dict[str, Any]:
        done, total = self._bytes or (None, None)
        return {"name": self.name, "line": self.line, "done": done, "total": total}

    def cancel(self) -> None:
        """What has been downloaded stays where it is."""
        self.cancelled, self.line, self._bytes = True, "cancelling", None
        if self._process is not None:
            _end(self._process)

    def prepare(self, *, as_it_is: bool) -> None:
        """Download and convert in another process. Raises SordinoError where that fails."""
        flags = ["--json", *(["--as-it-is"] if as_it_is else [])]
        command = [sys.executable, "-m", "sordino.models.files", *flags, self.name]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )
        if self.cancelled:
            # While the process was starting.
            _end(self._process)
        assert self._process.stdout is not None
        error, other = "", []
        with self._process.stdout as lines:
            for line in lines:
                step = _step(line)
                error = step.get("error", error)
                if not step:
                    other.append(line)
                elif not self.cancelled:
                    self._show(step)
        self._bytes = None
        if self._process.wait() and not self.cancelled:
            if not error:
                log.error("the model %r cannot be prepared:\n%s", self.name, "".join(other[-100:]))
            raise SordinoError(error or f"{self.name} cannot be prepared: see the server's log")

    def _show(self, step: dict[str, Any]) -> None:
        if "line" in step:
            self.line, self._bytes = step["line"], None
        elif "total" in step:
            self._bytes = done, total = step["done"], step["total"]
            self.line = f"downloading, {done / total:.0%} of {total / 1e6:,.0f} MB"


def _step(line: str) -> dict[str, Any]:
    """What `sordino.models.files --json` says on a line; nothing of what a library writes."""
    try:
        step = json.loads(line)
    except ValueError:
        return {}
    return step if isinstance(step, dict) else {}


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and those that it started: pip would go on."""
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.terminate()
    process.terminate()


def runs_as_it_is(name: str, runner: str) -> bool:
    """Whether llama.cpp runs the model from its file, so that nothing is converted."""
    return not why_torch(files.resolve(name), runner)
