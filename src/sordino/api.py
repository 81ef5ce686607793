"""Sordino from Python: what `import sordino` offers, on the functions that the command line and the page call.

Nothing here loads PyTorch until something computes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from sordino.errors import BadInput, ConfigError
from sordino.prompts.mixture import Prompt, components_of
from sordino.settings import from_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sordino.engine.generate import TextDelta, TextRequest
    from sordino.engine.sampling import Sampling
    from sordino.evaluation.report import Report
    from sordino.formats import Peek
    from sordino.models.base_model import BaseModel
    from sordino.models.files import Tell
    from sordino.prompts.fit import Fit
    from sordino.training.config import Calibration
    from sordino.training.events import OnEvent
    from sordino.training.job import Job
    from sordino.training.result import TrainResult

Paths = str | Path | Sequence[str | Path]
Prompts = Prompt | Sequence[Prompt | None] | None


@dataclass(frozen=True, eq=False)
class Model:
    """A frozen base model. Made by `load_model` or `Model.from_transformers`."""

    base: BaseModel

    def __repr__(self) -> str:
        return f"Model({self.base.name!r}, {self.base.device}, {self.base.dtype})"

    @staticmethod
    def from_transformers(network: PreTrainedModel, tokenizer: Any, *, name: str = "") -> Model:
        """A causal language model and its tokenizer that are in memory already.

        The network is frozen: it is put in eval mode, and its parameters lose their gradients. name: what soft prompts call it,
        by default its name on the Hub. Raises ModelError for an architecture that cannot carry a soft prompt.
        """
        from sordino.models.architectures import check_config
        from sordino.models.base_model import from_parts

        name = name or network.name_or_path or str(network.config.model_type)
        check_config(network.config, where=name)
        return Model(from_parts(network, tokenizer, name=name))

    def fit(self, prompt: Prompt) -> Fit:
        """How well a prompt fits: `kind` is "exact", "same family", "unknown" or "no"; `reason` says why."""
        return self.base.fit(prompt)

    @overload
    def generate(
        self, text: str, prompt: Prompt | None = None, *, seed: int = 0, force: bool = False, **sampling: Any
    ) -> str: ...

    @overload
    def generate(
        self,
        text: str | Sequence[str],
        prompt: Prompts = None,
        *,
        seed: int | Sequence[int] = 0,
        force: bool = False,
        **sampling: Any,
    ) -> list[str]: ...

    def generate(
        self,
        text: str | Sequence[str],
        prompt: Prompts = None,
        *,
        seed: int | Sequence[int] = 0,
        force: bool = False,
        **sampling: Any,
    ) -> str | list[str]:
        """The continuation of a text, with a soft prompt, a mixture, or neither.

        Lists of texts, prompts or seeds are one batch and give a list; what is not a list serves every row. What is written
        depends on a row's own text, prompt and seed, never on its batch. sampling: the fields of `Sampling`, for instance
        max_tokens=60, temperature=0. force: run a prompt of the right width that was made for another model.
        Raises ConfigError, DoesNotFit, OutOfMemory.
        """
        from sordino.engine.generate import complete

        requests = self._requests(text, prompt, seed, force=force)
        continued = complete(self.base, requests, _sampling(sampling))
        return continued if _is_batch(text, prompt, seed) else continued[0]

    def stream(
        self,
        text: str | Sequence[str],
        prompt: Prompts = None,
        *,
        seed: int | Sequence[int] = 0,
        force: bool = False,
        **sampling: Any,
    ) -> Iterator[TextDelta]:
        """As `generate`, a piece of text at a time.

        A piece has `request` (which row it continues), `text`, and `finish`: "stop" or "length" on a row's last piece, else None.
        """
        from sordino.engine.generate import generate

        return generate(self.base, self._requests(text, prompt, seed, force=force), _sampling(sampling))

    def _requests(
        self,
        text: str | Sequence[str],
        prompt: Prompts,
        seed: int | Sequence[int],
        *,
        force: bool,
    ) -> list[TextRequest]:
        from sordino.engine.generate import TextRequest

        texts, prompts, seeds = _as_list(text), _as_list(prompt), _as_list(seed)
        lengths = {len(values) for values in (texts, prompts, seeds)} - {1}
        if len(lengths) > 1:
            raise BadInput(
                "lists of different lengths",
                where="generate",
                expected="as many texts as prompts and seeds, or one for all",
                got=f"{len(texts)} texts, {len(prompts)} prompts, {len(seeds)} seeds",
            )
        rows = next(iter(lengths), 1)
        for each in prompts:
            if each is not None:
                self.base.check_fit(each, force=force)
        texts, prompts, seeds = (values * rows if len(values) == 1 else values for values in (texts, prompts, seeds))
        return [TextRequest(*row) for row in zip(texts, prompts, seeds, strict=True)]


def load_model(
    name: str = "smollm2", *, dtype: str | None = None, device: str | None = None, tell: Tell | None = None
) -> Model:
    """A base model by bundled name, folder, .gguf file or Hub id, fetched and converted first where that is needed.

    dtype: "float32", "bfloat16" or "float16"; by default float32, on a GPU bfloat16 where it has it. device: "cpu", "cuda",
    "cuda:N" or "mps"; by default a GPU where there is one. tell: called with a line before each thing that takes long.
    Raises ModelError, ConfigError, StorageError, OutOfMemory.
    """
    from sordino.models import base_model

    return Model(base_model.load(name, dtype=dtype, device=device, tell=tell))


def load(path: str | Path, *, index: int | None = None) -> Prompt:
    """A soft prompt or a mixture from a file or folder of any known format, or from your library by its name.

    index: which one, of a file that holds several. Loads no PyTorch. Raises SoftPromptFileError, NotInLibrary.
    """
    from sordino import formats

    return formats.read_any(_resolved(path), index=index)


def peek(path: str | Path) -> Peek:
    """What a file says of itself: `format`, `n_tokens`, `d_model`, `metadata`. Takes what `load` takes.

    Only headers are read: the tensor is not loaded, and no hash is computed. Raises as `load`.
    """
    from sordino import formats

    return formats.peek(_resolved(path))


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
    default the texts' name in the working directory. Checkpoints and report.html go to NAME.run beside it, from where `resume`
    goes on. overwrite: replace the file, and what an earlier run left there. on_event: called with each event as it happens.

    settings: the fields of `TrainConfig`, for instance tokens=20, steps=100; minutes=5 instead of steps; find_lr=True instead of
    lr; what the file says: name, author, description, licence, tags ("sea, letters"), rating, samples=False for a file without
    samples; speaker: whose turns of chat logs to learn.
    Raises DataError, ConfigError, BadInput, OutOfMemory, StorageError, TrainingError.
    """
    from sordino.training.config import Calibration, Description, TrainConfig, check_measured
    from sordino.training.job import Job, check_job, default_out
    from sordino.training.run import TextPaths

    given = _by_class(settings, TrainConfig, Calibration, Description, _Rest)
    check_measured(given[TrainConfig], given[Calibration])
    data, rest = _paths(texts), _Rest(**given[_Rest])
    file = Path(out) if out is not None else default_out(data[0]) if data else Path()
    job = Job(
        TextPaths(tuple(data), tuple(_paths(heldout)), rest.speaker),
        file,
        model.base.name,
        Description(**given[Description]).metadata(rest.name or file.stem),
        TrainConfig(**given[TrainConfig]),
        str(model.base.device),
        str(model.base.dtype).removeprefix("torch."),
        samples=rest.samples,
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
    speaker: str | None = None
    samples: bool = True


def evaluate(
    model: Model,
    prompts: Prompt | Mapping[str, Prompt],
    *,
    heldout: Paths,
    training: Paths = (),
    instructions: Sequence[str] = (),
    force: bool = False,
    **settings: Any,
) -> Report:
    """Measure soft prompts on texts that they were not trained on. `print` shows the report as a table and a verdict.

    The same tokens are predicted behind each prompt, behind nothing, behind instructions and, where `training` says where the
    training texts are, behind excerpts of them. prompts: one, or several by label. instructions: by default made from the prompts'
    names and descriptions. settings: the fields of `EvaluateConfig`, for instance limit=2048.
    Raises DataError, ConfigError, DoesNotFit, OutOfMemory.
    """
    from sordino.evaluation import measuring
    from sordino.evaluation.off_domain import packaged_text
    from sordino.texts.overlap import overlap_lines
    from sordino.texts.reading import read_pieces

    labelled = prompts if isinstance(prompts, Mapping) else {prompts.metadata.name or "soft prompt": prompts}
    for prompt in labelled.values():
        model.base.check_fit(prompt, force=force)
    held = read_pieces(_paths(heldout))
    excerpts = read_pieces(_paths(training)) if _paths(training) else None
    alone = [one for prompt in labelled.values() for one in components_of(prompt) if one is not None]
    report = measuring.evaluate(
        model.base,
        labelled,
        held.pieces,
        from_json(measuring.EvaluateConfig, settings),
        instructions=instructions,
        training=excerpts.pieces if excerpts else (),
        off_domain=packaged_text(alone, held.pieces),
    )
    read = (*held.notes, *excerpts.notes, *overlap_lines(excerpts.pieces, (), held.pieces)) if excerpts else held.notes
    return replace(report, notes=(*report.notes, *read))


def _by_class(given: Mapping[str, Any], *classes: type) -> dict[type, dict[str, Any]]:
    """Keyword arguments by the class that has a field of their name. Raises ConfigError for one that none has."""
    names = {cls: {field.name for field in fields(cls)} for cls in classes}
    unknown = sorted(set(given) - set().union(*names.values()))
    if unknown:
        raise ConfigError("unknown setting", where="train", got=", ".join(unknown))
    return {cls: {name: value for name, value in given.items() if name in names[cls]} for cls in classes}


def _resolved(path: str | Path) -> Path:
    if os.path.isfile(path):
        return Path(path)
    # Opening the default library makes it.
    from sordino.library.library import open_library

    return open_library(()).resolve(str(path))


def _sampling(given: Mapping[str, Any]) -> Sampling:
    """Raises ConfigError for a name that is no field."""
    from sordino.engine.sampling import Sampling

    # One text is a sequence too, of its characters.
    stop = {"stop": tuple(_as_list(given["stop"]))} if "stop" in given else {}
    return from_json(Sampling, {**given, **stop})


def _paths(given: Paths) -> list[Path]:
    return [Path(path) for path in ([given] if isinstance(given, str | Path) else given)]


def _as_list(value: Any) -> list[Any]:
    return list(value) if _is_batch(value) else [value]


def _is_batch(*given: Any) -> bool:
    return any(isinstance(value, Sequence) and not isinstance(value, str) for value in given)
