"""How alike soft prompts of one base model are, as SPoT measures it (Vu et al. 2022, arXiv 2110.07904, section 3).

    pooled      cosine of the prompts' mean vectors
    per token   mean cosine over all pairs of their virtual tokens

Both take prompts of different lengths. There, the more alike two tasks' prompts were (taken early in their training), the more one
helped as a start for the other: a correlation over many tasks, no promise for two. Vectors of different base models have nothing in
common, and their cosines say nothing.

Shape key: K prompts, P and Q virtual tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sordino.errors import BadInput, DoesNotFit
from sordino.prompts.soft_prompt import SoftPrompt

Kind = Literal["pooled", "per token"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """A soft prompt to start from, and how alike it is to the target: cosines from -1 to 1."""

    label: str
    pooled: float
    per_token: float


def pooled(a_PD: NDArray[np.float32], b_QD: NDArray[np.float32]) -> float:
    """Cosine of the mean vectors, -1 to 1; 0 where one of them is zero."""
    return float(_directions(_mean(a_PD)) @ _directions(_mean(b_QD)))


def per_token(a_PD: NDArray[np.float32], b_QD: NDArray[np.float32]) -> float:
    """Mean cosine over all pairs of virtual tokens, -1 to 1. Of a prompt and itself it is below 1 unless its tokens are one."""
    # The mean over pairs is the product of the means of the directions.
    return float(_mean(_directions(a_PD)) @ _mean(_directions(b_QD)))


MEASURES: Mapping[Kind, Callable[[NDArray[np.float32], NDArray[np.float32]], float]] = {
    "pooled": pooled,
    "per token": per_token,
}


def similarity_map(prompts: Sequence[SoftPrompt], kind: Kind) -> Floats:
    """Similarity [K, K] of every prompt to every other. Raises BadInput, DoesNotFit as `check_one_base`."""
    check_one_base(prompts)
    measure = MEASURES[kind]
    return np.array([[measure(a.matrix, b.matrix) for b in prompts] for a in prompts])


def ranked_sources(target: SoftPrompt, sources: Mapping[str, SoftPrompt]) -> list[Source]:
    """The sources, the likeliest to help first: by the mean over pairs of tokens.

    Raises DoesNotFit as `check_one_base`.
    """
    check_one_base([target, *sources.values()])
    found = [
        Source(label, pooled(target.matrix, prompt.matrix), per_token(target.matrix, prompt.matrix))
        for label, prompt in sources.items()
    ]
    return sorted(found, key=lambda source: (-source.per_token, source.label))


def comparable(target: SoftPrompt, prompts: Mapping[str, SoftPrompt]) -> tuple[dict[str, SoftPrompt], int]:
    """Those of the same base model, the target's own matrix left out, and how many are of another base model."""
    found, left_out = {}, 0
    for label, prompt in prompts.items():
        try:
            check_one_base([target, prompt])
        except DoesNotFit:
            left_out += 1
        else:
            if prompt.content_hash != target.content_hash:
                found[label] = prompt
    return found, left_out


def check_one_base(prompts: Sequence[SoftPrompt]) -> None:
    """Raise DoesNotFit unless the prompts are of one width and, as far as their files say, of one base model."""
    if not prompts:
        raise BadInput("there is no soft prompt to compare")
    first = prompts[0]
    for prompt in prompts[1:]:
        own, other = first.metadata.base, prompt.metadata.base
        differs = (own.fingerprint and other.fingerprint and own.fingerprint != other.fingerprint) or (
            own.family and other.family and own.family != other.family
        )
        if prompt.d_model != first.d_model or differs:
            raise DoesNotFit(
                "soft prompts of different base models cannot be compared",
                where=prompt.metadata.name,
                expected=f"{own.id or own.family or 'a model'}, {first.d_model} wide",
                got=f"{other.id or other.family or 'a model'}, {prompt.d_model} wide",
            )


def _mean(rows_PD: NDArray[np.floating]) -> Floats:
    found: Floats = np.asarray(rows_PD, dtype=np.float64).mean(axis=0)
    return found


def _directions(rows: NDArray[np.floating]) -> Floats:
    """Vectors [..., D] made one long; zeros stay."""
    wide = np.asarray(rows, dtype=np.float64)
    norms = np.linalg.norm(wide, axis=-1, keepdims=True)
    found: Floats = wide / np.where(norms > 0, norms, 1)
    return found
