"""The folders of training runs that were started on the page, one a run.

    job.json     what was asked for, and the process that works on it
    texts/       what was dropped or pasted
    look.jsonl   what `sordino train --dry-run --json` printed of texts and cost; look-error.json: what ended it
    voice.run/   the run's folder (metrics, checkpoint, report), voice.zip the result, log.txt what the process printed
    error.json   what ended the run; now.json: what it does now, besides its steps

Polled by every tab: a file is read again only when it is another file.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args

from filelock import FileLock

from sordino.errors import BadInput, StorageError
from sordino.storage import make_folder, write_bytes
from sordino.training.failure import FILE as ERROR
from sordino.training.failure import Failure
from sordino.training.progress_file import FILE as PROGRESS

# Folders in one another that a text may lie in, and names of texts that are listed.
_DEEPEST = 32
_MOST_LISTED = 200
# How long another server's change of the queue is waited for.
_LOCK_SECONDS = 10.0
T = TypeVar("T")

Requested = Literal["draft", "train", "stop"]
Command = Literal["train", "distil"]


@dataclass(frozen=True)
class QueuedJob:
    """command: `sordino train` or another. flags: its own, without texts and --out. pid, born: the process that works on it, 0 for
    none; what for it was started. asked: what the user wants it to do.
    """

    id: str
    name: str
    model: str
    created: float
    flags: tuple[str, ...] = ()
    asked: Requested = "draft"
    since: float = 0.0
    pid: int = 0
    born: float = 0.0
    error: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    command: Command = "train"


class JobFiles:
    """Under one folder. May be used from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._file_lock = FileLock(folder / ".lock")
        self._read_jobs: _ReadOnce[QueuedJob] = _ReadOnce(_job_in)
        self._read_steps: _ReadOnce[int] = _ReadOnce(_steps_in)
        # Cached once a run has begun: its texts do not change any more.
        self._texts: dict[str, list[str]] = {}

    def all(self) -> list[QueuedJob]:
        """Newest first. A damaged job.json is left out."""
        try:
            names = [item.name for item in os.scandir(self.folder) if not item.name.startswith(".")]
        except OSError:
            names = []
        found = [self.read(name) for name in names]
        return sorted((job for job in found if job is not None), key=lambda job: -job.created)

    def read(self, name: str) -> QueuedJob | None:
        return self._read_jobs(self.place(name) / "job.json")

    def write(self, job: QueuedJob) -> None:
        """Raises StorageError."""
        place = self.place(job.id)
        make_folder(place)
        write_bytes(place / "job.json", json.dumps(asdict(job), indent=1).encode())
        self._read_jobs.forget(place / "job.json")

    def place(self, name: str) -> Path:
        return self.folder / name

    def texts(self, job: QueuedJob) -> Path:
        return self.place(job.id) / "texts"

    def run_folder(self, job: QueuedJob) -> Path:
        return self.result(job).with_suffix(".run")

    def result(self, job: QueuedJob) -> Path:
        # `sordino train` insists on this ending for a KV prompt.
        return self.place(job.id) / ("voice.kv.zip" if "--kind=kv" in job.flags else "voice.zip")

    def error(self, job: QueuedJob) -> Path:
        return self.place(job.id) / ERROR

    def progress(self, job: QueuedJob) -> Path:
        return self.place(job.id) / PROGRESS

    def look_error(self, job: QueuedJob) -> Path:
        return self.place(job.id) / "look-error.json"

    def steps(self, job: QueuedJob) -> int:
        """The number of steps: as the run has stored it, until then as requested."""
        steps = self._read_steps(self.run_folder(job) / "settings.json") or job.settings.get("steps")
        return steps if isinstance(steps, int) else 0

    def text_names(self, job: QueuedJob) -> list[str]:
        """Paths below the folder of texts, the first of them."""
        known = self._texts.get(job.id)
        if known is None:
            texts = self.texts(job)
            paths = (path for path in sorted(texts.rglob("*")) if path.is_file())
            known = [path.relative_to(texts).as_posix() for path in paths][:_MOST_LISTED]
            if job.asked != "draft":
                self._texts[job.id] = known
        return known

    def forget(self, job: QueuedJob) -> None:
        """Its folder is gone."""
        self._texts.pop(job.id, None)
        self.read(job.id)

    def failure(self, job: QueuedJob, path: Path) -> Failure | None:
        """What a process wrote about its end, with the texts by the names that the user knows."""
        failure = Failure.read(path)
        if failure is None:
            return None
        texts = str(self.texts(job))
        parts = ("what", "where", "expected", "got", "do")
        named = {part: getattr(failure, part).replace(texts + os.sep, "").replace(texts, "the texts") for part in parts}
        return replace(failure, **named)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Neither another thread nor another server of this user changes a run meanwhile. Raises StorageError."""
        with self._lock:
            make_folder(self.folder)
            try:
                self._file_lock.acquire(timeout=_LOCK_SECONDS)
            except OSError as error:
                raise StorageError("the training folder cannot be used", where=self.folder, got=error) from error
            try:
                yield
            finally:
                self._file_lock.release()

    def copy_texts(self, job: QueuedJob, other: QueuedJob) -> None:
        """Raises StorageError; there is then nothing of the other."""
        try:
            shutil.copytree(self.texts(job), self.texts(other))
        except (OSError, shutil.Error) as error:
            shutil.rmtree(self.place(other.id), ignore_errors=True)
            raise StorageError("the texts cannot be copied", where=job.id, got=str(error)[:200]) from error

    def add_texts(self, job: QueuedJob, files: Sequence[tuple[str, bytes]]) -> None:
        """Files by their names, which may say folders. Of two texts of one name the second gets a number; equal ones are kept once.

        Raises BadInput, StorageError.
        """
        texts = self.texts(job)
        # All names are checked first: if one is refused, nothing is stored.
        for path, (name, content) in zip([texts.joinpath(*_parts(name)) for name, _ in files], files, strict=True):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                # A file of that name is there already, or the disk refuses.
                raise StorageError("the text cannot be kept", where=name, got=error.strerror) from error
            numbered = (path.with_stem(f"{path.stem} ({number})") for number in count(2))
            write_bytes(
                next(one for one in chain([path], numbered) if not one.is_file() or one.read_bytes() == content),
                content,
            )

    def remove_text(self, job: QueuedJob, name: str) -> None:
        """And the folders that it leaves empty. Raises BadInput."""
        texts = self.texts(job)
        path = texts.joinpath(*_parts(name))
        try:
            path.unlink()
        except OSError:
            raise BadInput("there is no such text", where=name) from None
        with suppress(OSError):
            for folder in path.relative_to(texts).parents:
                (texts / folder).rmdir()


class _ReadOnce(Generic[T]):
    """What files say, parsed once for each identity of a file; None for one that is not there, or says something else."""

    def __init__(self, parse: Callable[[Path, bytes], T]) -> None:
        self._parse = parse
        self._known: dict[Path, tuple[tuple[int, int, int], T | None]] = {}

    def __call__(self, path: Path) -> T | None:
        try:
            status = path.stat()
        except (OSError, ValueError):
            self._known.pop(path, None)
            return None
        identity = (status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._known.get(path)
        if known is not None and known[0] == identity:
            return known[1]
        try:
            value = self._parse(path, path.read_bytes())
        except OSError:
            return None
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            value = None
        self._known[path] = identity, value
        return value

    def forget(self, path: Path) -> None:
        """A file that was just written may have the identity of the one before."""
        self._known.pop(path, None)


def _job_in(path: Path, content: bytes) -> QueuedJob:
    stored = json.loads(content)
    job = QueuedJob(**{**stored, "id": path.parent.name, "flags": tuple(stored["flags"])})
    good = (
        all(isinstance(text, str) for text in (job.name, job.model, job.error, *job.flags))
        and all(math.isfinite(seconds) for seconds in (job.created, job.since, job.born))
        and isinstance(job.pid, int)
        and 0 <= job.pid < 2**31
        and job.asked in get_args(Requested)
        and job.command in get_args(Command)
        and isinstance(job.settings, dict)
    )
    if not good:
        raise ValueError("a value of another type, or out of range")
    return job


def _steps_in(path: Path, content: bytes) -> int:
    return int(json.loads(content)["config"]["steps"])


def _parts(name: str) -> list[str]:
    """A file's name as its parts below the folder of texts. Raises BadInput."""
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    if not 0 < len(parts) <= _DEEPEST or any(
        part in (".", "..") or "\0" in part or ":" in part or len(part) > 200 for part in parts
    ):
        raise BadInput("a name was expected", where="file", got=name[:100])
    return parts
