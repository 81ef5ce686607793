"""Training runs that were started on the page: one after another, each in its own process.

Everything about a run is in its folder (job_files.py), and its process does not end with this one: a server that starts again
finds its runs, running or not.
"""

from __future__ import annotations

import errno
import logging
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import psutil

from sordino.errors import BadInput, SordinoError
from sordino.training.checkpoint import FILE as CHECKPOINT
from sordino.training.failure import Failure
from sordino.training.job_files import JobFiles, QueuedJob
from sordino.training.measuring import Measuring
from sordino.training.processes import command_of, end_of, interrupt, is_alive, start_process

log = logging.getLogger("sordino.server")

_LOOK_SECONDS = 0.5
# A stopping run saves after its step; one that has not begun its steps has nothing to save.
_STOP_SECONDS = 60.0
# A draft that was never started is deleted after this time.
_DRAFT_SECONDS = 7 * 86400.0
_SWEEP_SECONDS = 3600.0
# Between attempts to start a run that the disk refuses.
_RETRY_SECONDS = 30.0

State = Literal["draft", "waiting", "running", "stopping", "stopped", "failed", "done"]


class Jobs:
    """The queue. May be used from any thread. Nothing runs before `start`."""

    def __init__(self, folder: Path) -> None:
        self.files = JobFiles(folder)
        self._not_before = 0.0
        # Why a waiting run could not be started, by its id.
        self._trouble: dict[str, str] = {}
        self._swept = -_SWEEP_SECONDS
        self.measuring = Measuring(self.files)
        # Runs by their process.
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        # The last line in the log: the same trouble comes twice a second.
        self._logged = ""

    def start(self) -> None:
        """Watch the runs and start those that wait. Drafts that were not started within a week are deleted."""
        self._thread = threading.Thread(target=self._watch, daemon=True, name="training runs")
        self._thread.start()

    def close(self) -> None:
        """Stop watching. Runs go on; measuring ends."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self.measuring.close()

    # What there is ---------------------------------------------------------------------------------------------------

    def get(self, name: str) -> QueuedJob:
        """Raises BadInput."""
        job = self.files.read(name) if name.isalnum() else None
        if job is None:
            raise BadInput("there is no such training run", where=name)
        return job

    def state(self, job: QueuedJob) -> State:
        if self._alive(job):
            return "stopping" if job.asked == "stop" else "running"
        if self.files.result(job).exists():
            return "done"
        if job.error:
            return "failed"
        states: dict[str, State] = {"draft": "draft", "train": "waiting", "stop": "stopped"}
        return states[job.asked]

    def failure(self, job: QueuedJob) -> Failure | None:
        """What ended it, or keeps it from starting; None where nothing does."""
        if job.error:
            known = self.files.failure(job, self.files.error(job))
            # An older version, or a full disk, left only the one line.
            return known if known is not None and known.message == job.error else Failure(job.error)
        return Failure(self._trouble[job.id]) if job.id in self._trouble else None

    def can_go_on(self, job: QueuedJob) -> bool:
        return (self.files.run_folder(job) / CHECKPOINT).exists() and not self.files.result(job).exists()

    # What is done to them --------------------------------------------------------------------------------------------

    def new(self, model: str, files: Sequence[tuple[str, bytes]]) -> QueuedJob:
        """A draft with its texts. Raises BadInput, StorageError."""
        job = QueuedJob(secrets.token_hex(8), "", model, time.time())
        try:
            self.files.add_texts(job, files)
            self.files.write(job)
        except SordinoError:
            shutil.rmtree(self.files.place(job.id), ignore_errors=True)
            raise
        return job

    def remove_text(self, job: QueuedJob, name: str) -> None:
        """Take a text out of a draft. Raises BadInput."""
        with self.files.alone():
            self._draft(job)
            self.measuring.end(job)
            self.files.remove_text(job, name)

    def again(self, job: QueuedJob) -> QueuedJob:
        """A draft with the texts of a run, for other settings; the run stays. Raises StorageError."""
        draft = QueuedJob(secrets.token_hex(8), job.name, job.model, time.time(), settings=job.settings)
        self.files.copy_texts(job, draft)
        self.files.write(draft)
        return draft

    def measure(self, job: QueuedJob, flags: Sequence[str], *, model: str) -> QueuedJob:
        """Measure what the texts of a draft are and what training on them costs. Raises BadInput, StorageError."""
        with self.files.alone():
            job = replace(self._draft(job), model=model)
            self.files.write(job)
            self.measuring.start(job, flags)
            return job

    def train(self, job: QueuedJob, **known: Any) -> QueuedJob:
        """Put a draft into the queue. known: fields of it: model, name, flags, settings, command. Raises BadInput, StorageError."""
        with self.files.alone():
            draft = self._draft(job)
            self.measuring.end(draft)
            job = replace(draft, **known, asked="train", since=time.time())
            self.files.write(job)
            return job

    def _draft(self, job: QueuedJob) -> QueuedJob:
        """Its current state on disk. Raises BadInput where it is no longer a draft."""
        job = self.get(job.id)
        if self.state(job) != "draft":
            raise BadInput("this run has started already", where=job.id)
        return job

    def go_on(self, job: QueuedJob) -> QueuedJob:
        """Queue a stopped run again; it resumes from its checkpoint, if there is one. Raises BadInput, StorageError."""
        with self.files.alone():
            job = self.get(job.id)
            if self.state(job) not in ("stopped", "failed"):
                raise BadInput("only a run that was stopped can be resumed", where=job.id)
            job = replace(job, asked="train", since=time.time(), error="", pid=0)
            self.files.write(job)
            return job

    def stop(self, job: QueuedJob) -> QueuedJob:
        """A run saves after its step and stops; one that is over, or was not begun, stays what it is. Raises StorageError."""
        with self.files.alone():
            job = self.get(job.id)
            if self.state(job) not in ("waiting", "running", "stopping"):
                return job
            job = replace(job, asked="stop", since=time.time())
            self.files.write(job)
            if self._alive(job):
                interrupt(job.pid)
            return job

    def remove(self, job: QueuedJob) -> None:
        """Everything of it. Raises BadInput while it runs."""
        with self.files.alone():
            if self._alive(self.get(job.id)):
                raise BadInput("this run is in progress", where=job.id, do="stop it first")
            self.measuring.end(job)
            shutil.rmtree(self.files.place(job.id), ignore_errors=True)
            self.files.forget(job)

    # The processes ---------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            try:
                self._tick()
            except Exception as error:
                # Whatever it is, the thread that starts runs must go on.
                self._report("the training runs cannot be watched", error)

    def _tick(self) -> None:
        """Raises StorageError, OSError where the disk does not let a run begin."""
        self.measuring.poll()
        jobs = self.files.all()
        sweep = time.monotonic() >= self._swept + _SWEEP_SECONDS
        # The lock is every server's of this user: taken only where something is to be done.
        if not sweep and self._next(jobs) is None and not any(self._is_due(job) for job in jobs):
            return
        with self.files.alone():
            if sweep:
                self._swept = time.monotonic()
            for job in self.files.all():
                try:
                    self._look_after(job, sweep=sweep)
                except Exception as error:
                    self._report(f"the training run {job.id} cannot be watched", error)
            job_next = self._next(self.files.all())
            if job_next is not None:
                self._begin(job_next)

    def _is_due(self, job: QueuedJob) -> bool:
        return job.pid != 0 and (not self._alive(job) or self._is_overdue(job))

    def _is_overdue(self, job: QueuedJob) -> bool:
        return job.asked == "stop" and time.time() - job.since > _STOP_SECONDS

    def _look_after(self, job: QueuedJob, *, sweep: bool) -> None:
        if self._alive(job):
            if self._is_overdue(job):
                psutil.Process(job.pid).kill()
        elif job.pid:
            self._ended(job)
        elif sweep and self.state(job) == "draft" and time.time() - job.created > _DRAFT_SECONDS:
            self.remove(job)

    def _next(self, jobs: Sequence[QueuedJob]) -> QueuedJob | None:
        """The run to begin now, if one is."""
        if time.monotonic() < self._not_before or any(self._alive(job) for job in jobs):
            return None
        waiting = (job for job in jobs if job.asked == "train" and not job.pid and self.state(job) == "waiting")
        return min(waiting, key=lambda job: job.since, default=None)

    def _begin(self, job: QueuedJob) -> None:
        place, errors = self.files.place(job.id), self.files.error(job)
        if self.can_go_on(job):
            arguments = ["--resume", str(self.files.run_folder(job))]
        else:
            flags = [*job.flags, "--out=" + str(self.files.result(job)), "--overwrite"]
            arguments = [f"--model={job.model}", *flags, str(self.files.texts(job))]
        # Should the disk refuse, it does so again at once.
        self._not_before = time.monotonic() + _RETRY_SECONDS
        self._trouble = {}
        try:
            errors.unlink(missing_ok=True)
            self.files.progress(job).unlink(missing_ok=True)
            notes = (f"--error-file={errors}", f"--progress-file={self.files.progress(job)}")
            command = command_of(*notes, *arguments, command=job.command)
            child = start_process(command, place / "log.txt", None, cwd=place)
        except (OSError, ValueError) as error:
            reason = f"the run cannot be started ({getattr(error, 'strerror', None) or error})"
            if isinstance(error, OSError) and error.errno != errno.E2BIG:
                self._trouble[job.id] = reason
                raise
            # No process takes such arguments, now or later: the others do not wait for it.
            self.files.write(replace(job, error=reason))
            self._not_before = 0.0
            return
        self._children[child.pid] = child
        try:
            with suppress(psutil.NoSuchProcess):
                self.files.write(replace(job, pid=child.pid, born=psutil.Process(child.pid).create_time()))
        except SordinoError as error:
            # A process whose id is in no file would be started a second time.
            self._children.pop(child.pid)
            child.kill()
            child.wait()
            self._trouble[job.id] = error.message
            raise
        self._not_before = 0.0

    def _ended(self, job: QueuedJob) -> None:
        child = self._children.pop(job.pid, None)
        code = child.poll() if child is not None else None
        message = ""
        if not self.files.result(job).exists() and job.asked != "stop":
            failure = self.files.failure(job, self.files.error(job))
            if failure is None:
                failure = end_of("training", code)
                failure.write(self.files.error(job))
            message = failure.message
        self.files.write(replace(job, pid=0, error=message))

    def _alive(self, job: QueuedJob) -> bool:
        if not job.pid:
            return False
        child = self._children.get(job.pid)
        if child is not None:
            return child.poll() is None
        return is_alive(job.pid, job.born)

    def _report(self, what: str, error: Exception) -> None:
        if self._logged != (line := f"{what}: {error!r}"):
            self._logged = line
            log.error(what, exc_info=error)
