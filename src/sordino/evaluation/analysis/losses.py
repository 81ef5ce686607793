"""The loss of many candidate matrices on the same windows of text, in shared passes.

Importance, what each virtual token does for the loss: the prompt is measured again without it. The tokens after it move up by one
position, as in a file without it; masking it would keep positions that no prompt has. Tokens work together: where each of two can
be left out, both together may not.

Shape key: K candidates, P virtual tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.evaluation import conditions
from sordino.evaluation.conditions import Condition, check_room
from sordino.evaluation.confidence import Floats
from sordino.evaluation.scoring import Progress, nll_of_windows, windows_of
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.examples import Example
from sordino.texts.pieces import Piece

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Passage:
    """A text in windows. tokens: their targets."""

    windows: tuple[Example, ...]

    @property
    def tokens(self) -> int:
        return sum(sum(window.labelled) for window in self.windows)


def passage_of(base: BaseModel, pieces: Sequence[Piece], *, row_tokens: int, limit: int) -> Passage:
    """The pieces, thinned evenly to `limit` targets (0: all): the tokens that `sordino evaluate` measures too.

    Raises DataError if no target is left.
    """
    # Without BOS, an empty prompt cannot predict a window's first token.
    return Passage(tuple(windows_of(base, pieces, row_tokens=row_tokens, limit=limit, first=bool(base.bos_ids))))


def losses_of(
    base: BaseModel,
    matrices: Sequence[Matrix],
    known: Metadata,
    passage: Passage,
    *,
    pass_tokens: int,
    progress: Progress = lambda done, total: None,
) -> Floats:
    """Nats per token [K] after each of K matrices [P_k, D]; with P_k = 0, after BOS alone. known: their placement and attention.

    Raises ConfigError (no room in the context), OutOfMemory.
    """
    candidates = [
        conditions.matrix(base, str(k), torch.from_numpy(np.array(matrix)), known) for k, matrix in enumerate(matrices)
    ]
    return losses_behind(base, candidates, passage, pass_tokens=pass_tokens, progress=progress)


def losses_behind(
    base: BaseModel,
    candidates: Sequence[Condition],
    passage: Passage,
    *,
    pass_tokens: int,
    progress: Progress = lambda done, total: None,
) -> Floats:
    """Nats per token [K] after each of K conditions. Raises as `losses_of`."""
    check_room(
        base,
        max(candidates, key=lambda candidate: candidate.length),
        max(len(window.ids) for window in passage.windows),
    )
    nll_WK = nll_of_windows(base, candidates, passage.windows, pass_tokens=pass_tokens, progress=progress)
    losses_K: Floats = nll_WK.sum(axis=0) / passage.tokens
    return losses_K


@dataclass(frozen=True)
class Importance:
    """loss, without: nats per token with the whole prompt and without it. costs: how much the loss rises without each virtual
    token; below 0 where the token does harm. tokens: targets measured.
    """

    loss: float
    without: float
    costs: tuple[float, ...]
    tokens: int


def importance(
    base: BaseModel,
    prompt: SoftPrompt,
    passage: Passage,
    *,
    pass_tokens: int,
    progress: Progress = lambda done, total: None,
) -> Importance:
    """Measure the prompt without each virtual token in turn: P + 2 prompts in one batch. Raises ConfigError, OutOfMemory."""
    matrices = [prompt.matrix, prompt.matrix[:0], *(without(prompt.matrix, at) for at in range(prompt.n_tokens))]
    whole, none, *others = losses_of(
        base, matrices, prompt.metadata, passage, pass_tokens=pass_tokens, progress=progress
    ).tolist()
    return Importance(whole, none, tuple(loss - whole for loss in others), passage.tokens)


def without(matrix_PD: Matrix, at: int) -> Matrix:
    """The matrix without row `at`."""
    return np.delete(matrix_PD, at, axis=0)
