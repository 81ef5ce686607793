"""Soft prompts of one base model put together as one ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np

from sordino.errors import BadInput, ConfigError
from sordino.prompts.mixture import Mixture, Prompt, Rule, uniform
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt


def ensemble_of(
    prompts: Mapping[str, Prompt], weights: Sequence[float] | None, rule: Rule, name: str, *, force: bool = False
) -> tuple[Mixture, list[str]]:
    """The ensemble of soft prompts (by label), and warnings. weights: None for equal ones.

    force: also of soft prompts that name different base models. Raises BadInput, ConfigError (a mixture among them).
    """
    parts = _components(prompts)
    _check_one_base(parts, force=force)
    given_K = uniform(len(parts)) if weights is None else np.array(weights)
    metadata = Metadata(
        name=name,
        base=_common_base([prompt.metadata.base for prompt in parts.values()]),
        description=f"{rule} of {', '.join(parts)}",
        training={"method": "ensemble", "components": list(parts), "weights": "equal" if weights is None else "given"},
    )
    return Mixture(tuple(parts.values()), given_K, rule, metadata=metadata), _twins(parts)


def _components(prompts: Mapping[str, Prompt]) -> dict[str, SoftPrompt]:
    found: dict[str, SoftPrompt] = {}
    for label, prompt in prompts.items():
        if isinstance(prompt, Mixture):
            raise ConfigError(
                "a mixture cannot be a component of another",
                where=label,
                do="give its components: they are native .zip files in it",
            )
        found[label] = prompt
    return found


def _check_one_base(prompts: Mapping[str, SoftPrompt], *, force: bool) -> None:
    """Raise BadInput for soft prompts that cannot, or were not made to, run on one base model."""
    (first, one), *others = prompts.items()
    for label, prompt in others:
        if prompt.d_model != one.d_model:
            raise BadInput(
                "these soft prompts are of different widths, so of different base models",
                where=f"{first} and {label}",
                got=f"{one.d_model} and {prompt.d_model}",
            )
        difference = _difference(one.metadata.base, prompt.metadata.base)
        if difference and not force:
            raise BadInput(
                "these soft prompts were made for different base models",
                where=f"{first} and {label}",
                got=difference,
                do="give --force to combine them all the same",
            )


def _difference(one: BaseRef, other: BaseRef) -> str:
    """What two files say of their base models and cannot both be true of one. What either leaves out contradicts nothing."""
    same_weights = bool(one.fingerprint) and one.fingerprint == other.fingerprint
    for name in ("family", "n_layers", "vocab_size", "id"):
        ours, theirs = getattr(one, name), getattr(other, name)
        if ours and theirs and ours != theirs and not same_weights:
            return f"{name} {ours} and {theirs}"
    return ""


def _common_base(bases: Sequence[BaseRef]) -> BaseRef:
    """What all of them say of their base model; what they do not agree on is left out."""
    first = bases[0]
    agreed = {
        item.name: getattr(first, item.name)
        for item in fields(BaseRef)
        if all(getattr(base, item.name) == getattr(first, item.name) for base in bases)
    }
    return BaseRef(**agreed)


def _twins(prompts: Mapping[str, SoftPrompt]) -> list[str]:
    """A line for each soft prompt that is the same matrix as one before it."""
    known: dict[str, str] = {}
    lines = []
    for label, prompt in prompts.items():
        twin = known.setdefault(prompt.content_hash, label)
        if twin != label:
            lines.append(f"{label} is the same matrix as {twin}: together they are that one with both weights")
    return lines
