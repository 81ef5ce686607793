"""The log probabilities of a request's own text: what scoring programs ask for.

Shape key: K branches, T positions of a step whose logits are read, V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sordino.engine.branches import Branches
from sordino.engine.requests import Request, Scoring
from sordino.engine.runners.runner import Runner, Span
from sordino.engine.sampling import Drawn, non_finite_logits, reported
from sordino.errors import ConfigError, SordinoError
from sordino.forward.placement import prefix_length
from sordino.prompts.mixture import Mixture


class TextScores:
    """The scores of one request's text, as far as it has been read. The position before a token scores it.

    While a text is scored, a mixture's weights follow it; afterwards they are what they were before.
    """

    def __init__(self, request: Request, scoring: Scoring, branches: Branches) -> None:
        self.scoring, self._ids = scoring, request.ids
        self._branches, self._weights_K = branches, branches.log_weights_K
        # Before it, a component that skips ids has no logits.
        self._first = self._read = max(request.skips, default=0)
        self._found: list[Drawn] = []

    def open(self, runner: Runner) -> int | None:
        """As `Branches.open`, but nothing is taken from the cache that has to be scored."""
        self._found, self._read, self._branches.log_weights_K = [], self._first, self._weights_K
        done = self._branches.open(runner, self._ids[: self._first + 1])
        members = self._branches.members
        if done is None:
            return None
        try:
            if not self._branches.grow(runner, len(self._ids)):
                self._branches.close(runner, ())
                return None
            predicted = self.scoring.first_token and self._ids and not self._first
            if predicted and all(prefix_length(runner.model, branch.prompt) for branch in members):
                logits_KV = np.asarray(runner.run([Span(branch.number, (), 1) for branch in members]))
                self._score(logits_KV, self._ids[0])
        except SordinoError:
            self._branches.close(runner, ())
            raise
        return done

    def count(self, done: int, end: int) -> int:
        """How many of the last positions up to `end` need logits, when `done` have run."""
        return max(0, end - max(done, self._first))

    def read(self, logits_KTV: NDArray[np.float32]) -> tuple[Drawn, ...] | None:
        """Score what the next positions predict: all scores, once the text is at its end. Raises ModelError."""
        for logits_KV in np.moveaxis(logits_KTV, 1, 0):
            self._read += 1
            if self._read < len(self._ids):
                self._score(logits_KV, self._ids[self._read])
        if self._read < len(self._ids):
            return None
        self._branches.log_weights_K = self._weights_K
        return tuple(self._found)

    def _score(self, logits_KV: NDArray[np.float32], token: int) -> None:
        logits_V, logp_KV = self._branches.combined(logits_KV)
        exact_V = np.asarray(logits_V).astype(np.float64)
        if not exact_V.max() < math.inf:
            raise non_finite_logits()
        self._found.append(reported(exact_V, token, self.scoring.likeliest))
        self._branches.observe(token, logp_KV)


def check_scored(request: Request) -> None:
    """Raise ConfigError where a text cannot be scored."""
    if request.scoring and isinstance(request.prompt, Mixture) and request.prompt.gate is not None:
        raise ConfigError(
            "the weights of this mixture are found from the text, so the text cannot be scored after it",
            where="echo",
            do="choose a mixture without a gate, or give its weights (mixture_weights)",
        )
