"""Measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sordino.api import Paths, as_paths
from sordino.prompts.mixture import Prompt, components_of
from sordino.settings import from_json

if TYPE_CHECKING:
    from sordino.api.model import Model
    from sordino.evaluation.report import Report


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
    from sordino.evaluation.conditions import Baselines
    from sordino.evaluation.config import EvaluateConfig
    from sordino.evaluation.off_domain import packaged_text
    from sordino.texts.overlap import overlap_lines
    from sordino.texts.reading import read_pieces

    labelled = prompts if isinstance(prompts, Mapping) else {prompts.metadata.name or "soft prompt": prompts}
    for prompt in labelled.values():
        model.base.check_fit(prompt, force=force)
    held = read_pieces(as_paths(heldout))
    excerpts = read_pieces(as_paths(training)) if as_paths(training) else None
    alone = [one for prompt in labelled.values() for one in components_of(prompt) if one is not None]
    report = measuring.evaluate(
        model.base,
        labelled,
        held.pieces,
        from_json(EvaluateConfig, settings),
        baselines=Baselines(instructions, excerpts.pieces if excerpts else ()),
        off_domain=packaged_text(alone, held.pieces),
    )
    read = (*held.notes, *excerpts.notes, *overlap_lines(excerpts.pieces, (), held.pieces)) if excerpts else held.notes
    return replace(report, notes=(*report.notes, *read))
