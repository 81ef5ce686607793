"""Training runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.api import Paths, as_paths
from sordino.errors import ConfigError

if TYPE_CHECKING:
    from sordino.api.model import Model
    from sordino.training.config import Calibration
    from sordino.training.events import OnEvent
    from sordino.training.job import Job
    from sordino.training.result import TrainResult


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

    texts, heldout: files and folders; without `heldout` a part of the texts is held out. out: the file to write, NAME.zip (with
    kind="kv" NAME.kv.zip), by default the texts' name in the working directory. Checkpoints and report.html go to NAME.run beside
    it, from where `resume` goes on. overwrite: replace the file, and what an earlier run left there. on_event: called with each
    event as it happens.

    settings: the fields of `TrainConfig`, for instance tokens=20, steps=100; minutes=5 instead of steps; find_lr=True instead of
    lr; what the file says: name, author, description, licence, tags ("sea, letters"), rating, samples=False for a file without
    samples; speaker: whose turns of chat logs to learn.
    Raises DataError, ConfigError, BadInput, OutOfMemory, StorageError, TrainingError.
    """
    from sordino.library.names import without_ending
    from sordino.training.config import Calibration, Description, ReadingConfig, TrainConfig, check_measured
    from sordino.training.job import Job, check_job, default_out
    from sordino.training.run import TextPaths

    given = _by_class(settings, TrainConfig, Calibration, Description, ReadingConfig, _Rest)
    check_measured(given[TrainConfig], given[Calibration])
    data, rest, about = as_paths(texts), _Rest(**given[_Rest]), Description(**given[Description])
    config = TrainConfig(**given[TrainConfig])
    file = Path(out) if out is not None else default_out(data[0], config) if data else Path()
    job = Job(
        TextPaths(tuple(data), tuple(as_paths(heldout)), ReadingConfig(**given[ReadingConfig]).speaker),
        file,
        model.base.name,
        about.metadata(rest.name or without_ending(file.name)),
        config,
        str(model.base.device),
        str(model.base.dtype).removeprefix("torch."),
        samples=rest.samples and not about.no_samples,
        overwrite=overwrite,
    )
    check_job(job)
    return _executed(job, model, on_event, Calibration(**given[Calibration]), resume=False)


def resume(
    model: Model, folder: str | Path, *, overwrite: bool = False, on_event: OnEvent | None = None
) -> TrainResult:
    """Go on with a run that was stopped or killed, from its folder NAME.run: to the same bits as if it had never stopped.

    model: the one that the run began with. overwrite: replace the file, should there be one. Raises as `train`.
    """
    from sordino.training.config import Calibration
    from sordino.training.job import stored_job

    return _executed(stored_job(Path(folder), overwrite=overwrite), model, on_event, Calibration(), resume=True)


def _executed(
    job: Job, model: Model, on_event: OnEvent | None, calibration: Calibration, *, resume: bool
) -> TrainResult:
    from sordino.training.events import nobody
    from sordino.training.execute import execute

    result = execute(job, model.base, calibration, resume=resume, on_event=on_event or nobody)
    assert result is not None, "a run stops only when it is asked to"
    return result


@dataclass(frozen=True)
class _Rest:
    """What a run may be told besides its settings."""

    name: str = ""
    samples: bool = True


def _by_class(given: Mapping[str, Any], *classes: type) -> dict[type, dict[str, Any]]:
    """Keyword arguments by the class that has a field of their name. Raises ConfigError for one that none has."""
    names = {cls: {field.name for field in fields(cls)} for cls in classes}
    unknown = sorted(set(given) - set().union(*names.values()))
    if unknown:
        raise ConfigError("unknown setting", where="train", got=", ".join(unknown))
    return {cls: {name: value for name, value in given.items() if name in names[cls]} for cls in classes}
