"""What each virtual token does for the loss: the prompt is measured again without it.

The tokens after it move up by one position, as in a file without it; masking it would keep positions that no prompt has. Tokens
work together: where each of two can be left out, both together may not.

Shape key: P virtual tokens, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sordino.evaluation.analysis.losses import Matrix, Passage, losses_of
from sordino.evaluation.scoring import Progress
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import SoftPrompt


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
        base,
        matrices,
        prompt.metadata.placement,
        passage,
        pass_tokens=pass_tokens,
        attention=prompt.metadata.attention,
        progress=progress,
    ).tolist()
    return Importance(whole, none, tuple(loss - whole for loss in others), passage.tokens)


def without(matrix_PD: Matrix, at: int) -> Matrix:
    """The matrix without row `at`."""
    return np.delete(matrix_PD, at, axis=0)
