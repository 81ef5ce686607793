"""Soft prompts of one base model put together as one ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sordino.errors import ConfigError
from sordino.prompts.fit import check_one_base, common_base
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.prompts.mixture import Mixture, Rule, StoredPrompt, uniform
from sordino.prompts.soft_prompt import Metadata


def ensemble_of(
    prompts: Mapping[str, StoredPrompt], weights: Sequence[float] | None, rule: Rule, name: str, *, force: bool = False
) -> tuple[Mixture, list[str]]:
    """The ensemble of soft prompts (by label), and warnings. weights: None for equal ones.

    force: also of soft prompts for different base models of one width. Raises DoesNotFit, ConfigError (a mixture among them).
    """
    parts = _components(prompts)
    notes = check_one_base(list(parts.values()), "combined", force=force)
    given_K = uniform(len(parts)) if weights is None else np.array(weights)
    metadata = Metadata(
        name=name,
        base=common_base([prompt.metadata.base for prompt in parts.values()]),
        description=f"{rule} of {', '.join(parts)}",
        training={"method": "ensemble", "components": list(parts), "weights": "equal" if weights is None else "given"},
    )
    return Mixture(tuple(parts.values()), given_K, rule, metadata=metadata), [*notes, *_twins(parts)]


def _components(prompts: Mapping[str, StoredPrompt]) -> dict[str, SinglePrompt]:
    found: dict[str, SinglePrompt] = {}
    for label, prompt in prompts.items():
        if isinstance(prompt, Mixture):
            raise ConfigError(
                "a mixture cannot be a component of another",
                where=label,
                do="give its components: they are files of their own in it",
            )
        found[label] = prompt
    return found


def _twins(prompts: Mapping[str, SinglePrompt]) -> list[str]:
    """A line for each soft prompt that is the same as one before it."""
    known: dict[str, str] = {}
    lines = []
    for label, prompt in prompts.items():
        twin = known.setdefault(prompt.content_hash, label)
        if twin != label:
            lines.append(f"{label} holds the same numbers as {twin}: together they are that one with both weights")
    return lines
