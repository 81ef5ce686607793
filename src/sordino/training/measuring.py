"""What the texts of drafts are and what training on them costs: `sordino train --dry-run` in processes of their own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sordino.training.job_files import JobFiles, QueuedJob
from sordino.training.processes import command_of, end_of, start_process


class Measuring:
    """One process a draft. May be used from any thread."""

    def __init__(self, files: JobFiles) -> None:
        self._files = files
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, job: QueuedJob, flags: Sequence[str]) -> None:
        """In place of the one that measures this draft with other settings. Raises OSError."""
        self.end(job)
        place, errors = self._files.place(job.id), self._files.look_error(job)
        errors.unlink(missing_ok=True)
        arguments = (f"--model={job.model}", *flags, "--dry-run", "--json", f"--error-file={errors}")
        command = command_of(*arguments, str(self._files.texts(job)))
        self._children[job.id] = start_process(command, place / "look.jsonl", place / "look.log", cwd=place)

    def state(self, job: QueuedJob) -> dict[str, Any]:
        """texts, cost: what is known so far. busy: more is to come. failure: None where nothing went wrong."""
        # Before its answer is read: all of it is there once the process is over.
        child = self._children.get(job.id)
        code = child.poll() if child is not None else None
        known: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            for line in (self._files.place(job.id) / "look.jsonl").read_text(encoding="utf-8").split("\n"):
                known |= json.loads(line) if line else {}
        busy = child is not None and code is None
        failure = None
        if not busy and "cost" not in known:
            failure = self._files.failure(job, self._files.look_error(job)) or end_of("measuring", code)
        return {**known, "busy": busy, "failure": failure}

    def poll(self) -> None:
        """Collect the exit codes of processes that ended, so that none stays a zombie."""
        for child in list(self._children.values()):
            child.poll()

    def end(self, job: QueuedJob) -> None:
        child = self._children.pop(job.id, None)
        if child is not None:
            child.kill()
            child.wait()

    def close(self) -> None:
        """End all."""
        for child in list(self._children.values()):
            child.kill()
            child.wait()
