"""The branches of a request: one row of the runner for each component of a mixture, one for a plain soft prompt or for none.

Shape key: K branches, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sordino.engine.requests import Request
from sordino.engine.runners.runner import Runner, Span
from sordino.engine.sampling import non_finite_logits
from sordino.errors import SordinoError
from sordino.forward.combining import responsible, sampling_logits
from sordino.prompts.mixture import Mixture, components_of
from sordino.prompts.prompt import Prompt

# A vote may give a token no probability at all; reported log probabilities are finite.
_LEAST = -1e4


@dataclass(eq=False)
class Branch:
    """number: the runner's. skip: how many of the request's first ids its prefix holds already. done: how many ids need not run."""

    number: int
    prompt: Prompt | None
    skip: int
    done: int = 0


@dataclass(eq=False)
class Branches:
    """All branches of a request: they open, grow and close together.

    fixed: whether a mixture's weights stay as they are while it writes. log_weights_K: a mixture's weights now; None until its gate
    has read the text, and for anything but a mixture.
    """

    prompt: Prompt | Mixture | None
    members: tuple[Branch, ...]
    fixed: bool
    log_weights_K: Tensor | None = None

    @staticmethod
    def of(request: Request, numbers: Iterator[int]) -> Branches:
        components = components_of(request.prompt)
        skips = request.skips or (0,) * len(components)
        members = tuple(Branch(next(numbers), *one) for one in zip(components, skips, strict=True))
        branches = Branches(request.prompt, members, request.token_mixture)
        if isinstance(request.prompt, Mixture) and request.prompt.gate is None:
            branches.log_weights_K = _logs(request.prompt.weights_K)
        return branches

    def __len__(self) -> int:
        return len(self.members)

    @property
    def number(self) -> int:
        """The request's: its first branch's."""
        return self.members[0].number

    def open(self, runner: Runner, ids: Sequence[int], written: int = 0) -> int | None:
        """Open all branches, or none. Returns how many of `ids` need not run in any, or None without room. written: as in
        `Runner.open`.

        A gate reads the text first, once. Raises what `Runner.open` and `Runner.hidden_of` do.
        """
        if self.log_weights_K is None and isinstance(self.prompt, Mixture):
            self.log_weights_K = _logs(self.prompt.weights_for(runner.hidden_of(ids)))
        opened: list[Branch] = []
        try:
            for branch in self.members:
                done = runner.open(branch.number, branch.prompt, ids[branch.skip :], written)
                if done is None:
                    break
                opened.append(branch)
                branch.done = branch.skip + done
        except SordinoError:
            _close(runner, opened, ())
            raise
        if len(opened) == len(self):
            return min(branch.done for branch in self.members)
        _close(runner, opened, ())
        return None

    def close(self, runner: Runner, ids: Sequence[int]) -> None:
        """Close all branches. ids: as `Runner.close` takes them, for a branch that skips none."""
        _close(runner, self.members, ids)

    def grow(self, runner: Runner, end: int) -> bool:
        """Make room for the first `end` ids in every branch. False: there is none."""
        return all(runner.grow(one.number, end - one.done) for one in self.members if end > one.done)

    def spans(self, ids: Sequence[int], end: int, wanted: int) -> list[Span]:
        """What each branch has to run up to `end`: one whose text was cached further is ahead. wanted: as in `Span`."""
        return [Span(one.number, ids[one.done : end], wanted) for one in self.members if wanted or one.done < end]

    def ran(self, end: int) -> None:
        for branch in self.members:
            branch.done = max(branch.done, end)

    def combined(self, logits_KV: NDArray[np.float32]) -> tuple[Tensor | NDArray[np.float32], Tensor | None]:
        """The logits [V] to draw from, and each branch's log probabilities [K, V] where there are several.

        Raises ModelError where a logit of one of several branches is not finite.
        """
        if not isinstance(self.prompt, Mixture) or len(self) == 1:
            return logits_KV[0], None
        assert self.log_weights_K is not None
        # A vote would hide it.
        if not logits_KV.max() < math.inf:
            raise non_finite_logits()
        logits_V, logp_KV = sampling_logits(torch.from_numpy(logits_KV), self.log_weights_K, self.prompt.rule)
        return logits_V.clamp_min(_LEAST), logp_KV

    def observe(self, token: int, logp_KV: Tensor | None) -> None:
        """Update the weights after a token: those of the rule "sequence" go by how likely each branch found it."""
        sequence = isinstance(self.prompt, Mixture) and self.prompt.rule == "sequence" and not self.fixed
        if sequence and logp_KV is not None and self.log_weights_K is not None:
            self.log_weights_K = responsible(self.log_weights_K, logp_KV[:, token])


def _close(runner: Runner, branches: Sequence[Branch], ids: Sequence[int]) -> None:
    for branch in branches:
        runner.close(branch.number, ids[branch.skip :])
        branch.done = 0


def _logs(weights_K: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(weights_K.copy()).log()
