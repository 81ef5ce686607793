"""Training runs that were begun on the page: a folder each, a process of its own each, one after another.

    job.json    what was asked for, and the process that works on it
    texts/      what was dropped or pasted
    look.jsonl  what `sordino train --dry-run --json` said about texts and cost
    voice.run/  the run's folder (metrics, checkpoint, report), voice.zip the result, log.txt what the process said

Everything that is known is in the folder, and the processes do not hang on this one: a server that starts again finds its runs
where they are, running or not.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psutil
from filelock import FileLock

from sordino.errors import BadInput, SordinoError, StorageError
from sordino.storage import make_folder, write_bytes
from sordino.training.checkpoint import FILE as CHECKPOINT
from sordino.training.processes import command_of, end_of, interrupt, started

_LOOK_SECONDS = 0.5
# A run that was asked to stop saves after its step; what is in no step yet has nothing to save.
_STOP_SECONDS = 60.0
# Folders in one another that a text may lie in; and how long texts wait for a run that nobody begins.
_DEEPEST = 32
_DRAFT_SECONDS = 7 * 86400.0
_SWEEP_SECONDS = 3600.0
# Until a run is begun again that the disk did not let begin; and how long another server's look at the queue is waited for.
_RETRY_SECONDS = 30.0
_LOCK_SECONDS = 10.0

State = Literal["draft", "waiting", "running", "stopping", "stopped", "failed", "done"]


@dataclass(frozen=True)
class Job:
    """flags: of `sordino train`, without DATA and --out. pid, born: the process that works on it, 0 for none; what for it
    was started. asked: what the user wants it to do.
    """

    id: str
    name: str
    model: str
    created: float
    flags: tuple[str, ...] = ()
    asked: Literal["draft", "train", "stop"] = "draft"
    since: float = 0.0
    pid: int = 0
    born: float = 0.0
    error: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


class Jobs:
    """All of them. May be used from any thread. `start` before anything is to run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.RLock()
        self._file_lock = FileLock(folder / ".lock")
        self._not_before = 0.0
        # Why what waits was not begun, by the job.
        self._trouble: dict[str, str] = {}
        self._swept = -_SWEEP_SECONDS
        # Runs by their process, and what looks at texts by the job.
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._lookers: dict[str, subprocess.Popen[bytes]] = {}
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def start(self) -> None:
        """Watch the runs, and start those that wait; texts that nobody trained on for a week are let go."""
        self._thread = threading.Thread(target=self._watch, daemon=True, name="training runs")
        self._thread.start()

    def close(self) -> None:
        """Watch no longer. Runs go on; what only looks at texts ends."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            for job in self.all():
                self._end_looking(job)

    # What there is ---------------------------------------------------------------------------------------------------

    def all(self) -> list[Job]:
        """Newest first."""
        found = [self._read(path.parent) for path in self._folder.glob("*/job.json")]
        return sorted((job for job in found if job is not None), key=lambda job: -job.created)

    def get(self, name: str) -> Job:
        """Raises BadInput."""
        job = self._read(self.place(name)) if name.isalnum() else None
        if job is None:
            raise BadInput("there is no such training run", where=name)
        return job

    def place(self, name: str) -> Path:
        return self._folder / name

    def _texts(self, job: Job) -> Path:
        return self.place(job.id) / "texts"

    def run_folder(self, job: Job) -> Path:
        return self.place(job.id) / "voice.run"

    def result(self, job: Job) -> Path:
        return self.place(job.id) / "voice.zip"

    def state(self, job: Job) -> State:
        if self._alive(job):
            return "stopping" if job.asked == "stop" else "running"
        if self.result(job).exists():
            return "done"
        if job.error:
            return "failed"
        return {"draft": "draft", "train": "waiting", "stop": "stopped"}[job.asked]  # type: ignore[return-value]

    def error(self, job: Job) -> str:
        """What ended it, or keeps it from being begun; "" where nothing does."""
        return job.error or self._trouble.get(job.id, "")

    def can_go_on(self, job: Job) -> bool:
        return (self.run_folder(job) / CHECKPOINT).exists() and not self.result(job).exists()

    # What is done to them --------------------------------------------------------------------------------------------

    def new(self, model: str, files: Sequence[tuple[str, bytes]]) -> Job:
        """A draft with its texts. Raises BadInput, StorageError."""
        job = Job(secrets.token_hex(8), "", model, time.time())
        try:
            self.add_texts(job, files)
            self._write(job)
        except SordinoError:
            shutil.rmtree(self.place(job.id), ignore_errors=True)
            raise
        return job

    def add_texts(self, job: Job, files: Sequence[tuple[str, bytes]]) -> None:
        """Files by their names, which may say folders. Raises BadInput, StorageError."""
        texts = self._texts(job)
        # All names first: nothing of what is refused is kept.
        for path, (name, content) in zip([texts.joinpath(*_parts(name)) for name, _ in files], files, strict=True):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                # A file of that name is there already, or the disk refuses.
                raise StorageError("the text cannot be kept", where=name, got=error.strerror) from error
            write_bytes(path, content)

    def remove_text(self, job: Job, name: str) -> None:
        """Take a text out of a draft. Raises BadInput."""
        path = self._texts(job).joinpath(*_parts(name))
        with self._alone():
            self._draft(job)
            self._end_looking(job)
            try:
                path.unlink()
            except OSError:
                raise BadInput("there is no such text", where=name) from None
            # Folders that it leaves empty go too.
            with suppress(OSError):
                for folder in path.relative_to(self._texts(job)).parents:
                    (self._texts(job) / folder).rmdir()

    def again(self, job: Job) -> Job:
        """A draft with the texts of a run, for other settings; the run stays. Raises StorageError."""
        draft = Job(secrets.token_hex(8), job.name, job.model, time.time(), settings=job.settings)
        try:
            shutil.copytree(self._texts(job), self._texts(draft))
        except (OSError, shutil.Error) as error:
            shutil.rmtree(self.place(draft.id), ignore_errors=True)
            raise StorageError("the texts cannot be copied", where=job.id, got=str(error)[:200]) from error
        self._write(draft)
        return draft

    def look(self, job: Job, flags: Sequence[str], *, model: str) -> Job:
        """Find out what the texts of a draft are and what training on them costs: see `looked`. Raises BadInput, StorageError."""
        with self._alone():
            job = replace(self._draft(job), model=model)
            self._write(job)
            self._end_looking(job)
            place = self.place(job.id)
            command = command_of(f"--model={job.model}", *flags, "--dry-run", "--json", str(self._texts(job)))
            self._lookers[job.id] = started(command, place / "look.jsonl", place / "look.log", cwd=place)
            return job

    def looked(self, job: Job) -> dict[str, Any]:
        """texts, cost: what is known so far. error. busy."""
        # Before its answer is read: what it said last is there once it is over.
        child = self._lookers.get(job.id)
        code = child.poll() if child is not None else None
        told: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            for line in (self.place(job.id) / "look.jsonl").read_text(encoding="utf-8").split("\n"):
                told |= json.loads(line) if line else {}
        busy = child is not None and code is None
        error = "" if busy or "cost" in told else self._error_in(job, "look.log") or end_of("measuring", code)
        return {**told, "busy": busy, "error": error}

    def train(self, job: Job, *, model: str, name: str, flags: Sequence[str], settings: dict[str, Any]) -> Job:
        """Put a draft into the queue. Raises BadInput, StorageError."""
        with self._alone():
            draft = self._draft(job)
            self._end_looking(draft)
            job = replace(
                draft, model=model, name=name, flags=tuple(flags), settings=settings, asked="train", since=time.time()
            )
            self._write(job)
            return job

    def _draft(self, job: Job) -> Job:
        """What is known of it by now. Raises BadInput where it is no draft any more."""
        job = self.get(job.id)
        if self.state(job) != "draft":
            raise BadInput("this run was begun already", where=job.id)
        return job

    def go_on(self, job: Job) -> Job:
        """Into the queue again: from the checkpoint, if there is one. Raises BadInput, StorageError."""
        with self._alone():
            job = self.get(job.id)
            if self.state(job) not in ("stopped", "failed"):
                raise BadInput("only a run that was stopped can go on", where=job.id)
            job = replace(job, asked="train", since=time.time(), error="", pid=0)
            self._write(job)
            return job

    def stop(self, job: Job) -> Job:
        """A run saves after its step and stops; one that is over, or was not begun, stays what it is. Raises StorageError."""
        with self._alone():
            job = self.get(job.id)
            if self.state(job) not in ("waiting", "running", "stopping"):
                return job
            job = replace(job, asked="stop", since=time.time())
            self._write(job)
            if self._alive(job):
                interrupt(job.pid)
            return job

    def remove(self, job: Job) -> None:
        """Everything of it. Raises BadInput while it runs."""
        with self._alone():
            if self._alive(self.get(job.id)):
                raise BadInput("this run is going on", where=job.id, do="stop it first")
            self._end_looking(job)
            shutil.rmtree(self.place(job.id), ignore_errors=True)

    # The processes ---------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            with suppress(SordinoError, OSError, psutil.Error):
                self._tick()

    def _tick(self) -> None:
        if not self._folder.is_dir():
            return
        with self._alone():
            self._let_go_of_drafts()
            for child in self._lookers.values():
                # The system is told that its end was seen.
                child.poll()
            running = False
            for job in self.all():
                if self._alive(job):
                    running = True
                    if job.asked == "stop" and time.time() - job.since > _STOP_SECONDS:
                        psutil.Process(job.pid).kill()
                elif job.pid:
                    self._ended(job)
            waiting = sorted((j for j in self.all() if self.state(j) == "waiting"), key=lambda job: job.since)
            if waiting and not running and time.monotonic() >= self._not_before:
                self._begin(waiting[0])

    def _let_go_of_drafts(self) -> None:
        if time.monotonic() < self._swept + _SWEEP_SECONDS:
            return
        self._swept = time.monotonic()
        for job in self.all():
            if self.state(job) == "draft" and time.time() - job.created > _DRAFT_SECONDS:
                self.remove(job)

    def _begin(self, job: Job) -> None:
        place = self.place(job.id)
        if self.can_go_on(job):
            command = command_of("--resume", str(self.run_folder(job)))
        else:
            flags = [*job.flags, "--out=" + str(self.result(job)), "--overwrite"]
            command = command_of(f"--model={job.model}", *flags, str(self._texts(job)))
        # Should the disk refuse, it does so again at once.
        self._not_before = time.monotonic() + _RETRY_SECONDS
        self._trouble = {}
        try:
            child = started(command, place / "log.txt", None, cwd=place)
        except OSError as error:
            self._trouble[job.id] = f"the run cannot be started ({error.strerror})"
            raise
        self._children[child.pid] = child
        try:
            with suppress(psutil.NoSuchProcess):
                self._write(replace(job, pid=child.pid, born=psutil.Process(child.pid).create_time()))
        except SordinoError as error:
            # A process that stands nowhere would be started a second time.
            self._children.pop(child.pid)
            child.kill()
            child.wait()
            self._trouble[job.id] = error.message
            raise
        self._not_before = 0.0

    def _ended(self, job: Job) -> None:
        child = self._children.pop(job.pid, None)
        code = child.poll() if child is not None else None
        error = ""
        if not self.result(job).exists() and job.asked != "stop":
            error = self._error_in(job, "log.txt") or end_of("training", code)
        self._write(replace(job, pid=0, error=error))

    def _alive(self, job: Job) -> bool:
        if not job.pid:
            return False
        child = self._children.get(job.pid)
        if child is not None:
            return child.poll() is None
        try:
            process = psutil.Process(job.pid)
            return bool(abs(process.create_time() - job.born) < 1 and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    def _error_in(self, job: Job, log: str) -> str:
        """The last `error:` line of a log, and what the terminal broke of it into further lines; texts by their own names."""
        try:
            text = (self.place(job.id) / log).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        # Ours begins with "error: ", click's of a flag with "Error: ".
        parts = re.split(r"\berror: ", text, flags=re.IGNORECASE)
        said = " ".join(parts[-1].split()) if len(parts) > 1 else ""
        return said.replace(f"{self._texts(job)}{os.sep}", "").replace(str(self._texts(job)), "the texts")

    def _end_looking(self, job: Job) -> None:
        child = self._lookers.pop(job.id, None)
        if child is not None:
            child.kill()
            child.wait()

    def _read(self, place: Path) -> Job | None:
        try:
            said = json.loads((place / "job.json").read_text(encoding="utf-8"))
            return Job(**{**said, "id": place.name, "flags": tuple(said["flags"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Neither another thread nor another server of this user changes a run meanwhile. Raises StorageError."""
        with self._lock:
            make_folder(self._folder)
            try:
                self._file_lock.acquire(timeout=_LOCK_SECONDS)
            except OSError as error:
                raise StorageError("the training folder cannot be used", where=self._folder, got=error) from error
            try:
                yield
            finally:
                self._file_lock.release()

    def _write(self, job: Job) -> None:
        place = self.place(job.id)
        make_folder(place)
        write_bytes(place / "job.json", json.dumps(asdict(job), indent=1).encode())


def _parts(name: str) -> list[str]:
    """A file's name as its parts below the folder of texts. Raises BadInput."""
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    if not 0 < len(parts) <= _DEEPEST or any(
        part in (".", "..") or "\0" in part or ":" in part or len(part) > 200 for part in parts
    ):
        raise BadInput("a file name was expected", where="file", got=name[:100])
    return parts
