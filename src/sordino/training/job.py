"""One training run as it was asked for: from the command line, or from the folder of a run that goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from shlex import quote
from typing import Any

from sordino.errors import BadInput, ConfigError, TrainingError
from sordino.library.names import is_mixture_name
from sordino.library.outputs import check_new
from sordino.models.files import absolute_name
from sordino.prompts.soft_prompt import Metadata
from sordino.storage import write_bytes
from sordino.training.checkpoint import is_unfinished, read_header
from sordino.training.config import TrainConfig
from sordino.training.events import HTML

SETTINGS = "settings.json"
_CONFIG_FLAGS = {field.name for field in fields(TrainConfig)}


@dataclass(frozen=True)
class Job:
    """One run as the user asked for it: kept in the run's folder, so that --resume needs nothing else."""

    data: tuple[Path, ...]
    heldout: tuple[Path, ...]
    out: Path
    model: str
    device: str | None
    dtype: str | None
    speaker: str | None
    metadata: Metadata
    config: TrainConfig
    samples: bool = True
    overwrite: bool = False
    # Of a run that goes on: its folder, which may have been moved, and where its first matrix came from.
    run: Path | None = None
    started: str | None = None
    # Of a run that is trained with others: the folder that all of them go on from.
    together: Path | None = None

    @property
    def folder(self) -> Path:
        return self.run or self.out.with_name(self.out.stem + ".run")


def job_of(options: Mapping[str, Any]) -> Job:
    """The job that the command line asks for, checked as far as it can be without reading a text. Raises BadInput."""
    data: tuple[Path, ...] = options["data"]
    if not data:
        raise BadInput(
            "there is nothing to train on",
            where="DATA",
            expected="text files or folders",
            do="sordino train FOLDER; sordino train --help",
        )
    if options["steps"] is not None and options["minutes"] is not None:
        raise ConfigError("both --steps and --minutes were given", do="give one of them")
    if options["minutes"] is not None and not 0 < options["minutes"] < math.inf:
        raise ConfigError(
            "there is no time to train", where="--minutes", expected="more than 0", got=options["minutes"]
        )
    first = data[0].resolve()
    destination = options["out"] or Path(f"{first.name if first.is_dir() else first.stem}.zip")
    if is_mixture_name(destination.name):
        raise BadInput(
            "this is a name of mixtures' files",
            where="--out",
            expected="NAME.zip",
            got=destination,
            do="leave .mix out",
        )
    if destination.suffix.lower() != ".zip":
        raise BadInput(
            "a soft prompt is written as a .zip",
            where="--out",
            got=destination,
            do=f"use {destination}.zip; sordino convert makes the other formats",
        )
    # A folder for several voices is made by their run.
    if options["out_dir"] is None or destination.parent.is_dir():
        check_new(destination, overwrite=options["overwrite"])
    config = TrainConfig(**{key: value for key, value in options.items() if key in _CONFIG_FLAGS and value is not None})
    metadata = Metadata(
        name=options["name"] or destination.stem,
        author=options["author"],
        description=options["description"],
        licence=options["licence"],
        tags=tuple(tag.strip() for tag in options["tags"].split(",") if tag.strip()),
        rating=options["rating"] or "",
    )
    for flag in ("name", "author", "description", "licence"):
        _check_unicode(f"--{flag}", getattr(metadata, flag))
    _check_unicode("--tags", options["tags"])
    job = Job(
        data, options["heldout"], destination, options["model"], options["device"], options["dtype"], options["speaker"],
        metadata, config, samples=not options["no_samples"], overwrite=options["overwrite"],
    )  # fmt: skip
    if not job.overwrite and (is_unfinished(job.folder) or is_unwritten(job.folder, job.out)):
        raise BadInput(
            "a run to this file was stopped and can go on",
            where=job.folder,
            do=f"sordino train --resume {quote(str(job.folder))}; or choose another --out; or begin again with --overwrite",
        )
    return job


def is_unwritten(folder: Path, out: Path) -> bool:
    """Whether the run in `folder` to the file `out` took all its steps and was killed in measuring, which takes minutes."""
    try:
        finished = read_header(folder)["progress"]["finished"]
    except (TrainingError, KeyError, TypeError):
        return False
    return finished in ("steps", "early") and not out.exists() and not (folder / HTML).exists()


def store(job: Job, started: str) -> None:
    """Write the job into its run's folder, with absolute paths. Raises StorageError."""
    stored = {
        "data": [str(path.resolve()) for path in job.data],
        "heldout": [str(path.resolve()) for path in job.heldout],
        "out": str(job.out.resolve()),
        "model": absolute_name(job.model),
        "device": job.device,
        "dtype": job.dtype,
        "speaker": job.speaker,
        "samples": job.samples,
        "overwrite": job.overwrite,
        "started": started,
        "metadata": {
            "name": job.metadata.name,
            "author": job.metadata.author,
            "description": job.metadata.description,
            "licence": job.metadata.licence,
            "tags": list(job.metadata.tags),
            "rating": job.metadata.rating,
        },
        "config": job.config.to_json(),
    }
    # ASCII: a path need not be Unicode, and escapes bring every one back.
    write_bytes(job.folder / SETTINGS, json.dumps(stored, indent=1).encode())


def stored_job(folder: Path, options: Mapping[str, Any]) -> Job:
    """The job of a run that is to go on. Raises BadInput, TrainingError."""
    if options["data"]:
        raise BadInput("a run that is resumed reads the texts it began with", where="DATA", do="leave DATA out")
    read_header(folder)
    job = job_from(folder, overwrite=options["overwrite"])
    check_new(job.out, overwrite=job.overwrite)
    return job


def job_from(folder: Path, *, overwrite: bool) -> Job:
    """The job that `store` wrote into a run's folder, wherever that is now. Raises TrainingError."""
    try:
        stored = json.loads((folder / SETTINGS).read_bytes())
        metadata = Metadata(**{**stored["metadata"], "tags": tuple(stored["metadata"]["tags"])})
        job = Job(
            tuple(map(Path, stored["data"])),
            tuple(map(Path, stored["heldout"])),
            Path(stored["out"]),
            stored["model"],
            stored["device"],
            stored["dtype"],
            stored["speaker"],
            metadata,
            TrainConfig.from_json(stored["config"]),
            stored["samples"],
            stored["overwrite"] or overwrite,
            folder,
            stored["started"],
        )
        if not all(isinstance(known, str) for known in (job.model, job.started)):
            raise TypeError("model and started are not both texts")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TrainingError(
            "the run's settings cannot be read", where=folder / SETTINGS, got=error, do="start again without --resume"
        ) from None
    return job


def _check_unicode(flag: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput("this is not Unicode text", where=flag, got=ascii(text), do="give another") from None
