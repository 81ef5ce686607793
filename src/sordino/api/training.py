"""Training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.api import Paths, as_paths, naming_arguments
from sordino.errors import ConfigError
from sordino.settings import check_names

if TYPE_CHECKING:
    from sordino.api.model import Model
    from sordino.training.calibration import Calibration
    from sordino.training.events import OnEvent
    from sordino.training.job import Job, RunOptions
    from sordino.training.result import TrainResult


@naming_arguments
def train(
    model: Model,
    texts: Paths,
    *,
    heldout: Paths = (),
    out: str | Path | None = None,
    overwrite: bool = False,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> TrainResult:
    """Train a soft prompt on texts, as `sordino train` does: the same file, report, checkpoints and numbers.

    texts, heldout: files and folders; without `heldout` a part of the texts is held out. out: the file to write, NAME.zip, by
    default the texts' name in the working directory. Checkpoints and report.html go to NAME.run beside it, which
    `resume` takes. overwrite: replace the file, and what an earlier run left there. on_event: called with each event as it happens.

    settings: the fields of `TrainConfig`, for instance tokens=20, steps=100; recipe="lester" for those of the paper, where they are
    not given; minutes=5 instead of steps; find_lr=True instead of
    lr; what the file says: name, author, description, licence, tags ("sea, letters"), rating, samples=False for a file without
    samples; speaker: whose turns of chat logs to learn; most_text: million characters that are read, of more a sample. With
    neither steps nor minutes, the number of steps is chosen: as many as suit the texts and fit into about 5 minutes here,
    300 at most. It is in the event `Cost` and in the file's recipe.
    Raises DataError, ConfigError, BadInput, OutOfMemory, StorageError, TrainingError.
    """
    from sordino.training.calibration import Calibration, calibration_of
    from sordino.training.config import Description, ReadingConfig, TextPaths, TrainConfig
    from sordino.training.job import check_job, train_job
    from sordino.training.recipes import RecipeChoice

    given = _by_class(settings, TrainConfig, Calibration, Description, ReadingConfig, RecipeChoice, _Rest)
    calibration = calibration_of(given[TrainConfig], given[Calibration])
    config = TrainConfig(**RecipeChoice(**given[RecipeChoice]).applied(given[TrainConfig]))
    reading = ReadingConfig(**given[ReadingConfig])
    paths = TextPaths(tuple(as_paths(texts)), tuple(as_paths(heldout)), reading.speaker, reading.most_text)
    job = train_job(paths, config, _run_options(model, out, given, overwrite=overwrite))
    check_job(job)
    return _executed(job, model, on_event, calibration, resume=False)


@naming_arguments
def distil(
    model: Model,
    texts: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    overwrite: bool = False,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> TrainResult:
    """Turn a long text into a soft prompt, as `sordino distil` does: an instruction, examples, a card, a lorebook, notes on style.

    texts: files, or words in place of a file; several are one text. out: the file to write, NAME.zip. Checkpoints, the model's
    continuations and report.html go to NAME.run beside it, which `resume` takes. `result.report.distilled` says how much
    of the text's effect is kept. settings: the fields of `DistilConfig`, for instance tokens=16, continuations=256, steps=80;
    what the file says, as in `train`. Raises as `train`.
    """
    from sordino.training.calibration import Calibration
    from sordino.training.config import Description
    from sordino.training.distil.config import DistilConfig
    from sordino.training.distil.source import files_and_words
    from sordino.training.job import check_job, distil_job

    given = _by_class(settings, DistilConfig, Description, _Rest)
    files, words = files_and_words([str(text) for text in ([texts] if isinstance(texts, str | Path) else texts)])
    config = DistilConfig(**{"text": words, **given[DistilConfig]})
    job = distil_job(files, config, _run_options(model, out, given, overwrite=overwrite))
    check_job(job)
    return _executed(job, model, on_event, Calibration(), resume=False)


@naming_arguments
def resume(
    model: Model, folder: str | Path, *, overwrite: bool = False, on_event: OnEvent | None = None
) -> TrainResult:
    """Resume a run that was stopped or killed, from its folder NAME.run, bit for bit as if it had never stopped.

    model: the one that the run began with. overwrite: replace the file, should there be one. Raises as `train`.
    """
    from sordino.training.calibration import Calibration
    from sordino.training.job import stored_job

    return _executed(stored_job(Path(folder), overwrite=overwrite), model, on_event, Calibration(), resume=True)


@naming_arguments
def unfinished(out: str | Path) -> Path | None:
    """The folder of the run to this file, where it was stopped or killed and can go on: for `resume`. Else None."""
    from sordino.training import job

    return job.unfinished(Path(out))


def _executed(
    job: Job, model: Model, on_event: OnEvent | None, calibration: Calibration, *, resume: bool
) -> TrainResult:
    from sordino.training.events import nobody
    from sordino.training.execute import execute
    from sordino.training.launch import started_in_several

    if started_in_several():
        raise ConfigError(
            "in Python a run has one process",
            where="torchrun",
            do="give torchrun `-m sordino train ...` instead of your script (docs/scale.md)",
        )
    result = execute(job, model.base, calibration, resume=resume, on_event=on_event or nobody)
    assert result is not None, "a run stops only when it is asked to"
    return result


def _run_options(
    model: Model, out: str | Path | None, given: Mapping[type, Mapping[str, Any]], *, overwrite: bool
) -> RunOptions:
    from sordino.library.outputs import Outputs
    from sordino.training.config import Description, Loading
    from sordino.training.job import RunOptions

    about, rest, base = Description(**given[Description]), _Rest(**given[_Rest]), model.base
    outputs = Outputs(None if out is None else Path(out), name=rest.name, overwrite=overwrite)
    about = replace(about, no_samples=about.no_samples or not rest.samples)
    dtype = str(base.dtype).removeprefix("torch.")
    return RunOptions(outputs, about, base.name, Loading(str(base.device), dtype, base.quantise))


@dataclass(frozen=True)
class _Rest:
    """Arguments of a run besides its settings."""

    name: str = ""
    samples: bool = True


def _by_class(given: Mapping[str, Any], *classes: type) -> dict[type, dict[str, Any]]:
    """Keyword arguments by the class that has a field of their name. Raises ConfigError for one that none has."""
    names = {cls: {field.name for field in fields(cls)} for cls in classes}
    check_names(given, set().union(*names.values()), where="settings")
    return {cls: {name: value for name, value in given.items() if name in names[cls]} for cls in classes}
