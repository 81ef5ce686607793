"""Measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sordino.api import Paths, as_paths, checked_prompt, naming_arguments
from sordino.prompts.mixture import StoredPrompt
from sordino.settings import from_json

if TYPE_CHECKING:
    from sordino.api.model import Model
    from sordino.evaluation.report import Report


@naming_arguments
def evaluate(
    model: Model,
    prompts: StoredPrompt | Mapping[str, StoredPrompt],
    *,
    heldout: Paths,
    training: Paths = (),
    instructions: Sequence[str] = (),
    force: bool = False,
    **settings: Any,
) -> Report:
    """Measure soft prompts on texts that they were not trained on. `print` shows the report as a table and a verdict.

    The same tokens are predicted after each prompt, without one, after instructions and, where `training` names the training
    texts, after excerpts of them. prompts: one, or several by label. instructions: by default made from the prompts'
    descriptions. settings: the fields of `EvaluateConfig`, for instance limit=2048; distance=[0, 256, 768] measures
    what is left of the gains after so many tokens of other text, continuations=64 whether so many continuations repeat
    themselves.
    Raises DataError, ConfigError, DoesNotFit, OutOfMemory.
    """
    from sordino.evaluation import measuring
    from sordino.evaluation.conditions import Baselines
    from sordino.evaluation.config import ContinuationConfig, DistanceConfig, EvaluateConfig
    from sordino.evaluation.off_domain import packaged_text
    from sordino.texts.heldout import read_heldout

    labelled = (
        prompts if isinstance(prompts, Mapping) else {checked_prompt(prompts).metadata.name or "soft prompt": prompts}
    )
    for prompt in labelled.values():
        model.base.check_fit(checked_prompt(prompt), force=force)
    distance = settings.get("distance")
    if isinstance(distance, Sequence) and all(type(tokens) is int for tokens in distance):
        settings["distance"] = DistanceConfig(distances=tuple(sorted({0, *distance})))
    if isinstance(count := settings.get("continuations"), int):
        settings["continuations"] = ContinuationConfig(count)
    texts = read_heldout(as_paths(heldout), as_paths(training))
    report = measuring.evaluate(
        model.base,
        labelled,
        texts.pieces,
        from_json(EvaluateConfig, settings),
        baselines=Baselines(instructions, texts.training),
        off_domain=packaged_text(labelled.values(), texts.pieces),
    )
    return replace(report, notes=(*report.notes, *texts.notes, *texts.overlaps))
