"""One training run: its settings, as given and as stored in its folder to resume from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shlex import quote

from sordino.errors import BadInput, CheckpointError
from sordino.formats import read_single
from sordino.library.library import open_library
from sordino.library.names import ENDINGS, kind_of_name, without_ending
from sordino.library.outputs import Outputs, check_new, run_folder
from sordino.models.files import absolute_name
from sordino.models.sizes import check_sizes
from sordino.prompts.kv_prompt import KVPrompt, SinglePrompt
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.settings import from_json
from sordino.storage import write_bytes
from sordino.training.checkpoint import is_unfinished, read_header, reading_stored
from sordino.training.config import Description, Kind, Loading, TextPaths, TrainConfig
from sordino.training.distil.config import DistilConfig
from sordino.training.events import HTML
from sordino.training.reading import stored_texts, texts_to_store

SETTINGS = "settings.json"
# Fields of a job that its folder holds under their own names.
_AS_THEY_ARE = ("samples", "overwrite")
# The texts in the metadata that the user writes.
_TEXTS = ("name", "author", "description", "licence")


@dataclass(frozen=True)
class Job:
    """The settings of a run, as its folder holds them: --resume needs nothing else."""

    texts: TextPaths
    out: Path
    model: str
    metadata: Metadata
    config: TrainConfig
    loading: Loading = field(default_factory=Loading)
    samples: bool = True
    overwrite: bool = False
    # For a resumed run: its folder, which may have been moved, and where its first matrix came from.
    run: Path | None = None
    started: str | None = None
    # For a run that is trained with others: the folder that all of them resume from.
    together: Path | None = None
    # For a run that learns what a long text does; `texts` are then that text.
    distil: DistilConfig | None = None

    @property
    def folder(self) -> Path:
        return self.run or run_folder(self.out, together=self.together is not None)


@dataclass(frozen=True)
class RunOptions:
    """What runs of every kind have: where the file goes and what it says, the model and how it is loaded."""

    outputs: Outputs
    about: Description
    model: str
    loading: Loading


def train_job(texts: TextPaths, config: TrainConfig, run: RunOptions) -> Job:
    """A run on texts, to a file that is by default called as they are, in the working directory. Its number
    type is chosen here, and kept on every machine that resumes it.

    `check_job` tells whether it can begin. Raises ConfigError.
    """
    # Imports torch.
    from sordino.models.base_model import training_dtype

    # A wrong device is refused here in any case.
    by_default = training_dtype(None, run.loading.device)
    first = texts.data[0] if texts.data else Path("none")
    out = run.outputs.target or default_out(first, config.kind)
    return Job(
        texts,
        out,
        run.model,
        run.about.metadata(run.outputs.name or without_ending(out.name)),
        config,
        replace(run.loading, dtype=run.loading.dtype or by_default),
        samples=not run.about.no_samples,
        overwrite=run.outputs.overwrite,
    )


def distil_job(files: Sequence[Path], config: DistilConfig, run: RunOptions) -> Job:
    """A run that learns what a long text does: of files, and of `config.text`."""
    if config.openings:
        config = replace(config, openings=str(Path(config.openings).resolve()))
    return replace(train_job(TextPaths(tuple(files)), config.for_loop(), run), distil=config)


def default_out(data: Path, kind: Kind) -> Path:
    """The file that a run on these texts writes, in the working directory."""
    first = data.resolve()
    return Path(f"{first.name if first.is_dir() else first.stem}{ending_of(kind)}")


def ending_of(kind: Kind) -> str:
    """The ending of the file that a run of this kind writes."""
    return ENDINGS[KVPrompt.kind if kind == "kv" else SoftPrompt.kind]


def read_prompt(name: str) -> SinglePrompt:
    """A soft prompt to start from: of the default library, or a file. Raises BadInput, SoftPromptFileError."""
    return read_single(open_library(()).resolve(name))


def check_start(init: str, model: str) -> None:
    """Read the soft prompt that a run starts from, if it starts from one. Raises as `read_prompt` and `check_sizes`."""
    if init.startswith("file:"):
        check_sizes(model, [read_prompt(init.removeprefix("file:"))])


def check_job(job: Job) -> None:
    """What can be checked of a job that begins without reading a text. Raises BadInput."""
    if not job.texts.data and not (job.distil and job.distil.text):
        raise BadInput(
            "there is nothing to train on",
            where="DATA",
            expected="text files or folders",
            do="sordino train FOLDER; sordino train --help",
        )
    ending = ending_of(job.config.kind)
    if (named := kind_of_name(job.out.name)) and ENDINGS[named] != ending:
        raise BadInput(f"this is a name of {named}s' files", where="--out", expected=f"NAME{ending}", got=job.out)
    if job.out.suffix.lower() != ".zip":
        raise BadInput(
            "a soft prompt is written as a .zip",
            where="--out",
            got=job.out,
            do=f"use {job.out}.zip; sordino convert makes the other formats",
        )
    texts = (*job.texts.data, *job.texts.heldout)
    if job.out.exists() and any(path.exists() and path.samefile(job.out) for path in texts):
        raise BadInput("this is a file to read", where=job.out, do="name the file to write with --out")
    # A group's folder is made by its run.
    if job.together is None or job.out.parent.is_dir():
        check_new(job.out, overwrite=job.overwrite)
    check_start(job.config.init, job.model)
    for name in _TEXTS:
        _check_unicode(f"--{name}", getattr(job.metadata, name))
    _check_unicode("--tags", ",".join(job.metadata.tags))
    if not job.overwrite and (is_unfinished(job.folder) or is_unwritten(job.folder, job.out)):
        raise BadInput(
            "a run to this file was stopped and can go on",
            where=job.folder,
            do=f"sordino train --resume {quote(str(job.folder))}; or choose another --out; or begin again with --overwrite",
        )


def unfinished(out: Path) -> Path | None:
    """The folder of the run to this file, where it can go on: it was stopped or killed, perhaps in measuring. Else None."""
    folder = run_folder(out)
    return folder if is_unfinished(folder) or _is_unreported(folder) else None


def is_unwritten(folder: Path, out: Path) -> bool:
    """Whether the run in `folder` to the file `out` took all its steps and was killed before it wrote the file."""
    return not out.exists() and _is_unreported(folder)


def _is_unreported(folder: Path) -> bool:
    """Whether the run in `folder` took all its steps and was killed before its report, perhaps in measuring."""
    try:
        finished = read_header(folder)["progress"]["finished"]
    except (CheckpointError, KeyError, TypeError):
        return False
    return finished in ("steps", "early") and not (folder / HTML).exists()


def store(job: Job, started: str) -> None:
    """Write the job into its run's folder, with absolute paths. Raises StorageError."""
    stored = {
        **texts_to_store(job.texts),
        **asdict(job.loading),
        **{name: getattr(job, name) for name in _AS_THEY_ARE},
        "out": str(job.out.resolve()),
        "model": absolute_name(job.model),
        "started": started,
        "metadata": {name: getattr(job.metadata, name) for name in (*_TEXTS, "tags", "rating")},
        "config": asdict(job.config),
        "distil": job.distil and asdict(job.distil),
    }
    # ASCII: a path need not be Unicode, and escapes bring every one back.
    write_bytes(job.folder / SETTINGS, json.dumps(stored, indent=1).encode())


def stored_job(folder: Path, *, overwrite: bool = False) -> Job:
    """The job of a run that is to go on. overwrite: replace the file too, should there be one. Raises BadInput, CheckpointError."""
    read_header(folder)
    job = job_from(folder, overwrite=overwrite)
    # The file may be its own, written before it was measured; `write_result` compares them.
    if not _is_unreported(folder):
        check_new(job.out, overwrite=job.overwrite)
    return job


def job_from(folder: Path, *, overwrite: bool) -> Job:
    """The job that `store` wrote into a run's folder, wherever that is now. Raises CheckpointError."""
    path = folder / SETTINGS
    with reading_stored("the run's settings cannot be read", path, do="start again without --resume"):
        stored = json.loads(path.read_bytes())
        job = Job(
            stored_texts(stored),
            Path(stored["out"]),
            stored["model"],
            Metadata(**{**stored["metadata"], "tags": tuple(stored["metadata"]["tags"])}),
            TrainConfig.from_json(stored["config"]),
            Loading.of(stored),
            **{name: stored[name] for name in _AS_THEY_ARE},
            run=folder,
            started=stored["started"],
            # Older versions do not write it.
            distil=from_json(DistilConfig, stored["distil"]) if stored.get("distil") else None,
        )
        if not all(isinstance(known, str) for known in (job.model, job.started)):
            raise TypeError("model and started are not both texts")
    return replace(job, overwrite=job.overwrite or overwrite)


def _check_unicode(flag: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput("this is not Unicode text", where=flag, got=ascii(text), do="give another") from None
