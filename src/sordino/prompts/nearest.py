"""The vocabulary's tokens that are nearest to the virtual tokens of a soft prompt.

Shape key: P virtual tokens, D model width, V vocabulary, v tokens of it in a part, C nearest tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sordino.prompts.soft_prompt import SoftPrompt

By = Literal["cosine", "distance"]

# The vocabulary is processed in parts: a large model's takes gigabytes in float32.
_WORDS_AT_ONCE = 8192


class Vocabulary(Protocol):
    """Words and their embeddings: of a base model, or of a file that holds one."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def embed(self, ids: Tensor, /) -> Tensor:
        """[..., D] of ids [...]."""

    def decode(self, ids: Sequence[int], /) -> str: ...


def nearest_words(
    base: Vocabulary, prompt: SoftPrompt, *, count: int = 5, by: By = "cosine"
) -> list[list[tuple[str, float]]]:
    """For each virtual token the vocabulary's nearest words and their scores, nearest first.

    by: the cosine (larger is nearer), or the Euclidean distance (smaller is nearer), which also depends on the vectors' norms.
    """
    matrix_PD = torch.from_numpy(prompt.matrix.copy()).to(base.device)
    sign = 1.0 if by == "cosine" else -1.0
    scores_PC, ids_PC = (
        matrix_PD.new_empty(prompt.n_tokens, 0),
        matrix_PD.new_empty(prompt.n_tokens, 0, dtype=torch.long),
    )
    with torch.inference_mode():
        for ids_v, words_vD in _parts(base):
            scores_PC = torch.cat([scores_PC, sign * _compared(matrix_PD, words_vD, by)], dim=1)
            scores_PC, places_PC = scores_PC.topk(min(count, scores_PC.shape[1]), dim=1)
            ids_PC = torch.cat([ids_PC, ids_v.expand(prompt.n_tokens, -1)], dim=1).gather(1, places_PC)
    return [
        [(base.decode([token]), sign * value) for token, value in zip(tokens, values, strict=True)]
        for tokens, values in zip(ids_PC.tolist(), scores_PC.tolist(), strict=True)
    ]


def word_norms(base: Vocabulary) -> NDArray[np.float64]:
    """Euclidean norms [V] of the vocabulary's embeddings, ascending."""
    with torch.inference_mode():
        norms_V = torch.cat([torch.linalg.vector_norm(words_vD, dim=1) for _, words_vD in _parts(base)])
    found: NDArray[np.float64] = np.sort(norms_V.double().cpu().numpy())
    return found


def percentiles(values_P: NDArray[np.floating], ascending_V: NDArray[np.floating]) -> NDArray[np.float64]:
    """For each value the percentage of `ascending_V` that is not above it."""
    found: NDArray[np.float64] = 100 * np.searchsorted(ascending_V, values_P, side="right") / len(ascending_V)
    return found


def _parts(base: Vocabulary) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, base.vocab_size, _WORDS_AT_ONCE):
        ids_v = torch.arange(start, min(start + _WORDS_AT_ONCE, base.vocab_size), device=base.device)
        yield ids_v, base.embed(ids_v).float()


def _compared(matrix_PD: Tensor, words_vD: Tensor, by: By) -> Tensor:
    if by == "cosine":
        return torch.nn.functional.normalize(matrix_PD, dim=1) @ torch.nn.functional.normalize(words_vD, dim=1).T
    # Not by a matrix product, which loses all digits for two vectors that are nearly equal.
    return torch.cdist(matrix_PD, words_vD, compute_mode="donot_use_mm_for_euclid_dist")
