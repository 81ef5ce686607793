"""A mixture from its texts and soft prompts to its file: read, train where asked to, fit, measure, write. Prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sordino.errors import BadInput, ConfigError
from sordino.evaluation.pictures import write_picture
from sordino.formats import file_disclosure, write_mixture
from sordino.models.base_model import BaseModel
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.prompts.soft_prompt import Metadata, PlacementName, today
from sordino.training.config import TextPaths
from sordino.training.events import Disclosed, Validation, Warned, Working, working
from sordino.training.loop import TrainSet
from sordino.training.mixture.components import component_form, component_of
from sordino.training.mixture.config import FitConfig, JointConfig
from sordino.training.mixture.contamination import contaminated_components
from sordino.training.mixture.fit import FittedMixture, MixtureTexts, fit, prepare
from sordino.training.mixture.joint import JointResult, WeightedStep, excerpts_apart, train_jointly
from sordino.training.mixture.report import report_figure

Labelled = Sequence[tuple[str, SinglePrompt]]


@dataclass(frozen=True)
class MixtureJob:
    """The settings of a mixture. components: soft prompts by label, which fit the base model. joint: how to train `count`
    components together first, from those that are given or from excerpts. picture: where to draw the report.
    """

    components: Labelled
    texts: TextPaths
    out: Path
    metadata: Metadata
    config: FitConfig
    joint: JointConfig | None = None
    count: int = 0
    picture: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class ExamplesRead:
    """The texts are split and cut. train, validation, heldout: examples of each set. how: the split, in a sentence."""

    train: int
    validation: int
    heldout: int
    how: str
    notes: tuple[str, ...]
    duplicates: tuple[str, ...]


@dataclass(frozen=True)
class JointStarted:
    """The steps of joint training begin. how: where the first matrices came from."""

    components: int
    steps: int
    how: str


MixtureEvent = ExamplesRead | Warned | Working | JointStarted | WeightedStep | Validation | JointResult | Disclosed
OnMixtureEvent = Callable[[MixtureEvent], None]


def execute_mixture(job: MixtureJob, base: BaseModel, on_event: OnMixtureEvent = lambda event: None) -> FittedMixture:
    """The mixture, measured and written to `job.out`. Raises SordinoError."""
    config, texts = job.config, job.texts
    on_event(Working("Reading the texts"))
    prepared = prepare(base, texts, config)
    splits = prepared.splits
    train, validation, heldout = map(len, (prepared.train, prepared.validation, prepared.heldout))
    on_event(ExamplesRead(train, validation, heldout, splits.how, prepared.notes, splits.duplicates))
    for line in contaminated_components(job.components, texts, splits.heldout, config.seed, ends=base.end_markers):
        on_event(Warned(line))
    recipe: dict[str, Any] = {"method": "em"}
    components = job.components
    if job.joint is not None:
        components, recipe = _trained(job, job.joint, base, prepared, on_event)
    metadata, progress = replace(job.metadata, supported=(base.id,)), working("Measuring", on_event)
    fitted = fit(base, components, prepared, config, metadata=metadata, recipe=recipe, progress=progress)
    if job.out.exists() and not job.overwrite:
        raise BadInput(
            "a file of this name appeared while fitting", where=job.out, do="move it away, or add --overwrite"
        )
    on_event(Disclosed(tuple(file_disclosure(fitted.mixture))))
    write_mixture(fitted.mixture, job.out, force=True)
    if job.picture is not None:
        write_picture(report_figure(fitted.report), job.picture)
    return fitted


def _trained(
    job: MixtureJob, config: JointConfig, base: BaseModel, prepared: MixtureTexts, on_event: OnMixtureEvent
) -> tuple[Labelled, dict[str, Any]]:
    """The components, trained together, and how they came about."""
    placement = _placement_of(base, job.components)
    if job.components:
        starts = [component_of(base, prompt) for _, prompt in job.components]
        init = "the soft prompts " + ", ".join(repr(label) for label, _ in job.components)
    else:
        form = component_form(base, config.kind, placement)
        progress = working("Choosing excerpts", on_event)
        starts = excerpts_apart(base, prepared.train, form, job.count, config, progress)
        init = "excerpts of the training texts"
    on_event(JointStarted(job.count, config.steps, init))
    data = TrainSet(prepared.train, prepared.validation, prepared.data_hash)
    for event in train_jointly(base, data, starts, config):
        on_event(event)
    assert isinstance(event, JointResult)
    recipe = {
        "method": "joint",
        **{key: value for key, value in asdict(config).items() if key not in ("pass_tokens", "seed", "kind")},
        "tokens": [component.tokens for component in event.components],
        "init": init,
        "best_step": event.best_step,
        "validation_nll": round(event.best_loss, 5) if prepared.validation else None,
    }
    metadata = Metadata(
        base=base.ref,
        supported=(base.id,),
        placement=placement,
        created=today(),
        training={"method": "joint", "init": init, "data_hash": prepared.data_hash, "seed": config.seed},
    )
    labels = [label for label, _ in job.components] or [f"{job.metadata.name} {k + 1}" for k in range(job.count)]
    return [
        (label, component.prompt(replace(metadata, name=label)))
        for label, component in zip(labels, event.components, strict=True)
    ], recipe


def _placement_of(base: BaseModel, given: Labelled) -> PlacementName:
    places = sorted({prompt.metadata.placement for _, prompt in given})
    if len(places) > 1:
        raise ConfigError(
            "soft prompts that are trained together sit in one place",
            where="--components",
            expected="one placement",
            got=" and ".join(places),
            do="leave --joint out: weights alone may be fitted to them",
        )
    return places[0] if places else base.placement
