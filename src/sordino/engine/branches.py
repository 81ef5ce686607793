"""The branches of a request: a row of the runner for each component of a mixture, one for a plain soft prompt or for none.

Shape key: K branches, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sordino.engine.runners.runner import Runner
from sordino.engine.sampling import non_finite_logits
from sordino.errors import SordinoError
from sordino.forward.combining import responsible, sampling_logits
from sordino.prompts.mixture import Mixture
from sordino.prompts.prompt import Prompt

# A vote may give a word no probability at all; what is reported of words are finite numbers.
_LEAST = -1e4


@dataclass(eq=False)
class Branch:
    """number: the runner's. skip: of the request's ids, those that stand in front of its prompt. done: ids that need not be run."""

    number: int
    prompt: Prompt | None
    skip: int
    done: int = 0


def open_branches(runner: Runner, branches: Sequence[Branch], ids: Sequence[int]) -> bool:
    """Open all branches of a request, or none. False: there is no room for all. Raises what `Runner.open` does."""
    there: list[Branch] = []
    try:
        for branch in branches:
            done = runner.open(branch.number, branch.prompt, ids[branch.skip :])
            if done is None:
                break
            there.append(branch)
            branch.done = branch.skip + done
    except SordinoError:
        close_branches(runner, there, ())
        raise
    if len(there) == len(branches):
        return True
    close_branches(runner, there, ())
    return False


def close_branches(runner: Runner, branches: Sequence[Branch], ids: Sequence[int]) -> None:
    """Close all branches of a request. ids: as `Runner.close` takes them, for a branch that skips none."""
    for branch in branches:
        runner.close(branch.number, ids[branch.skip :])
        branch.done = 0


def initial_weights(prompt: Prompt | Mixture | None) -> Tensor | None:
    """The log weights [K] that a mixture begins with; None where its gate has to read the text, and for what is no mixture."""
    if not isinstance(prompt, Mixture) or prompt.gate is not None:
        return None
    return torch.from_numpy(prompt.weights_K.copy()).log()


def combined_logits(
    prompt: Prompt | Mixture | None, logits_KV: NDArray[np.float32], log_weights_K: Tensor | None
) -> tuple[Tensor | NDArray[np.float32], Tensor | None]:
    """What the branches say together [V], and each branch's log-probabilities [K, V] where there are several.

    Raises ModelError where what one of several says is not a number.
    """
    if not isinstance(prompt, Mixture) or len(prompt.components) == 1:
        return logits_KV[0], None
    assert log_weights_K is not None
    # A vote would hide it.
    if not logits_KV.max() < math.inf:
        raise non_finite_logits()
    logits_V, logp_KV = sampling_logits(torch.from_numpy(logits_KV), log_weights_K, prompt.rule)
    return logits_V.clamp_min(_LEAST), logp_KV


def weights_after(prompt: Prompt | Mixture | None, log_weights_K: Tensor, logp_K: Tensor) -> Tensor:
    """The weights behind a token to which the branches gave `logp_K`: those of the rule "sequence" alone learn from it."""
    if isinstance(prompt, Mixture) and prompt.rule == "sequence":
        return responsible(log_weights_K, logp_K)
    return log_weights_K
