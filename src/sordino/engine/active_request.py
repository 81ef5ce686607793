"""A request while it waits or runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sordino.engine.branches import Branches
from sordino.engine.detokenizer import Detokenizer
from sordino.engine.grammar import GrammarState
from sordino.engine.requests import Request
from sordino.engine.scheduler import ScheduledRequest
from sordino.engine.seen_tokens import SeenTokens
from sordino.engine.text_scores import TextScores


@dataclass(eq=False)
class ActiveRequest:
    """A request that waits or runs. width: positions ahead of its ids. seen: its own ids and the drawn ones. scores: of its text,
    until they are reported."""

    request: Request
    entry: ScheduledRequest
    width: int
    branches: Branches
    random: torch.Generator
    text: Detokenizer
    seen: SeenTokens
    scores: TextScores | None
    grammar: GrammarState | None

    @property
    def ids(self) -> list[int]:
        return self.seen.ids

    @property
    def n_new(self) -> int:
        return len(self.ids) - len(self.request.ids)

    def wanted(self, count: int) -> int:
        """How many of the last positions need logits in each branch, when the next `count` run."""
        end = self.entry.done + count
        last = int(end >= self.entry.length)
        return last if self.scores is None else max(last, self.scores.count(self.entry.done, end))
