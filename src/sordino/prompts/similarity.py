"""How alike soft prompts of one base model are, as SPoT measures it (Vu et al. 2022, arXiv 2110.07904, section 3).

    pooled      cosine of the prompts' mean vectors
    per token   mean cosine over all pairs of their virtual tokens

Both take prompts of different lengths. In that paper, the more alike the prompts of two tasks were (early in training), the more
one helped as a start for the other: a correlation over many tasks, no promise for two. Vectors of different base models have
nothing in common, so their cosines mean nothing.

Shape key: K prompts, P and Q virtual tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sordino.prompts.fit import check_one_base
from sordino.prompts.soft_prompt import SoftPrompt

Kind = Literal["pooled", "per token"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """A soft prompt to start from, and its similarity to the target: cosines from -1 to 1."""

    label: str
    pooled: float
    per_token: float


def pooled(a_PD: NDArray[np.float32], b_QD: NDArray[np.float32]) -> float:
    """Cosine of the mean vectors, -1 to 1; 0 where one of them is zero."""
    return float(_directions(_mean(a_PD)) @ _directions(_mean(b_QD)))


def per_token(a_PD: NDArray[np.float32], b_QD: NDArray[np.float32]) -> float:
    """Mean cosine over all pairs of virtual tokens, -1 to 1. Of a prompt and itself below 1, unless its tokens are all alike."""
    # The mean over pairs is the product of the means of the directions.
    return float(_mean(_directions(a_PD)) @ _mean(_directions(b_QD)))


MEASURES: Mapping[Kind, Callable[[NDArray[np.float32], NDArray[np.float32]], float]] = {
    "pooled": pooled,
    "per token": per_token,
}


def similarity_map(prompts: Sequence[SoftPrompt], kind: Kind) -> Floats:
    """Similarity [K, K] of every prompt to every other. Raises BadInput, DoesNotFit as `check_one_base`."""
    check_one_base(prompts, "compared")
    measure = MEASURES[kind]
    return np.array([[measure(a.matrix, b.matrix) for b in prompts] for a in prompts])


def ranked_sources(target: SoftPrompt, sources: Mapping[str, SoftPrompt]) -> list[Ranked]:
    """The sources, the likeliest to help first, by the mean over pairs of tokens.

    Raises DoesNotFit as `check_one_base`.
    """
    check_one_base([target, *sources.values()], "compared")
    found = [
        Ranked(label, pooled(target.matrix, prompt.matrix), per_token(target.matrix, prompt.matrix))
        for label, prompt in sources.items()
    ]
    return sorted(found, key=lambda one: (-one.per_token, one.label))


def _mean(rows_PD: NDArray[np.floating]) -> Floats:
    found: Floats = np.asarray(rows_PD, dtype=np.float64).mean(axis=0)
    return found


def _directions(rows: NDArray[np.floating]) -> Floats:
    """Vectors [..., D] scaled to unit length; zeros stay zero."""
    wide = np.asarray(rows, dtype=np.float64)
    norms = np.linalg.norm(wide, axis=-1, keepdims=True)
    found: Floats = wide / np.where(norms > 0, norms, 1)
    return found
