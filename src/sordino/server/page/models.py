"""The base model, chosen on the page: what is available, what it needs, loading with progress, cancelling, unloading.

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
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import psutil
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from sordino.errors import SordinoError
from sordino.models import files, fingerprint, hub
from sordino.models.bundled import BUNDLED
from sordino.models.files import ModelSource
from sordino.models.gguf_header import read_gguf_header
from sordino.server.errors import Refused, refused, refusing
from sordino.server.page.training_settings import Argument
from sordino.server.serving import Idle, Serving, state_of
from sordino.server.start import Models
from sordino.storage import write_bytes

log = logging.getLogger("sordino.server")

router = APIRouter(prefix="/ui/models", include_in_schema=False)

_MOST_RECENT = 8
# Memory besides the weights: the program, running rows, prefixes.
_OVERHEAD_BYTES = 600 << 20


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
    """Changes the model. runner: of `sordino serve --runner`. announce: called with what is served from now on.

    May be used from any thread. Loads one model at a time.
    """

    def __init__(
        self,
        models: Models,
        idle: Idle,
        announce: Callable[[Serving | Idle], None],
        recent: Recent,
        runner: str = "auto",
    ) -> None:
        self.models, self.recent, self.runner = models, recent, runner
        self._idle, self._announce = idle, announce
        self._lock = threading.Lock()
        self._attempt: _Attempt | None = None
        self._error = ""

    def status(self) -> dict[str, Any]:
        """loading: the model's name and the last line of progress. error: why the last model could not be loaded."""
        attempt = self._attempt
        loading = {"name": attempt.name, "line": attempt.line} if attempt else None
        return {"loading": loading, "error": self._error}

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
            attempt.prepare(as_it_is=runs_as_it_is(attempt.name, self.runner))
            if not attempt.cancelled:
                attempt.line = "reading the weights"
                self.models.change(attempt.name, self._announce, still_wanted=lambda: not attempt.cancelled)
            if not attempt.cancelled:
                self.recent.add(attempt.name)
        except SordinoError as error:
            self._error = "" if attempt.cancelled else refused(error).message
        except Exception as error:
            # A bug, or a model file that makes a library fail: the page must not wait forever.
            log.exception("the model %r cannot be loaded", attempt.name)
            self._error = f"{attempt.name} cannot be loaded: {type(error).__name__}: {error}"
        finally:
            self._attempt = None


class _Attempt:
    """One model while it is being loaded."""

    def __init__(self, name: str) -> None:
        self.name, self.line, self.cancelled = name, "preparing", False
        self._process: subprocess.Popen[str] | None = None

    def cancel(self) -> None:
        self.cancelled, self.line = True, "cancelling"
        if self._process is not None:
            self._process.terminate()

    def prepare(self, *, as_it_is: bool) -> None:
        """Download and convert in another process. Raises SordinoError with its last line."""
        command = [sys.executable, "-m", "sordino.models.files", *(["--as-it-is"] if as_it_is else []), self.name]
        # The hub shows its progress bar on terminals only, unless this variable is set.
        env = {**os.environ, "TQDM_POSITION": "-1", "PYTHONIOENCODING": "utf-8"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace", env=env
        )  # fmt: skip
        if self.cancelled:
            # While the process was starting.
            self._process.terminate()
        assert self._process.stdout is not None
        last = ""
        with self._process.stdout as lines:
            # A progress bar ends its lines with a carriage return: text mode splits there too.
            for line in lines:
                if line.strip() and not self.cancelled:
                    last = self.line = line.strip()
        if self._process.wait() and not self.cancelled:
            raise SordinoError(last.removeprefix("error: ") or "it cannot be prepared")


def runs_as_it_is(name: str, runner: str) -> bool:
    """Whether llama.cpp runs the model from its file, so that nothing is converted."""
    source = files.resolve(name)
    return source.kind in ("bundled", "gguf") and runner != "torch" and find_spec("llama_cpp") is not None


def needed_bytes(source: ModelSource, *, as_it_is: bool) -> int | None:
    """An estimate of the memory for a model; None where it is not on this machine yet."""
    try:
        if source.path is None or not source.path.exists():
            return (
                BUNDLED[source.name].megabytes * (1 if as_it_is else 6) * 1_000_000 + _OVERHEAD_BYTES
                if source.name in BUNDLED
                else None
            )
        if source.kind == "folder":
            weights = fingerprint.weight_files(source.path)
            counts = [fingerprint.n_parameters(fingerprint.safetensors_tensors(path)) for path in weights]
            return 4 * sum(counts) + _OVERHEAD_BYTES
        return (
            source.path.stat().st_size if as_it_is else 4 * read_gguf_header(source.path).n_parameters
        ) + _OVERHEAD_BYTES
    except (SordinoError, OSError):
        return None


class ModelName(BaseModel):
    """name: a bundled model, a path on the server's machine, or a hub id."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[Argument, Field(min_length=1, max_length=4096)]


@router.get("")
def models(request: Request) -> dict[str, Any]:
    """The models to choose from and the memory that each needs; free memory; `Loader.status`."""
    loader = _loader(request)
    # Before the state: a tab that learns that loading has ended must see its result.
    status = loader.status()
    state = state_of(request)
    current = state.model if isinstance(state, Serving) else None
    kinds: dict[str, str] = {}
    for kind, names in (("bundled", BUNDLED), ("recent", loader.recent.names()), ("downloaded", hub.downloaded())):
        for name in names:
            kinds.setdefault(name, kind)
    choices = []
    for name, kind in kinds.items():
        try:
            source = files.resolve(name)
        except SordinoError:
            continue
        needed = needed_bytes(source, as_it_is=runs_as_it_is(name, loader.runner))
        choices.append({"name": name, "kind": kind, "needed": needed})
    return {"current": current, "choices": choices, "free": psutil.virtual_memory().available, **status}


@router.post("")
def load(request: Request, body: ModelName) -> dict[str, Any]:
    loader = _loader(request)
    with refusing("name"):
        loader.start(body.name.strip())
    return loader.status()


@router.post("/cancel")
def cancel(request: Request) -> dict[str, Any]:
    _loader(request).cancel()
    return _loader(request).status()


@router.post("/unload")
def unload(request: Request) -> dict[str, Any]:
    _loader(request).unload()
    return _loader(request).status()


def _loader(request: Request) -> Loader:
    loader: Loader = request.app.state.loader
    return loader
