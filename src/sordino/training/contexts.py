"""Text between a soft prompt and its rows: what keeps a prompt's effect from fading behind other text.

A row that always begins right behind the prompt teaches it nothing about text further away. So in a share of the steps, other text
stands between: neutral text of several registers from the package, or text of the run itself. The rows of a step share it: prompt
and context are one longer prefix, which runs once.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import chain

from sordino.models.base_model import BaseModel
from sordino.texts.examples import Example
from sordino.training.config import TrainConfig

# Of the contexts, the share that is text of the run itself.
OWN = 0.25
# Shorter contexts change little.
SHORTEST = 64
# Stands between a context and the rows.
BREAK = "\n\n"


@dataclass(frozen=True)
class Contexts:
    """The contexts of a run, as a function of the step. longest: tokens; 0: there are none."""

    neutral: Sequence[int]
    own: Sequence[int]
    ending: Sequence[int]
    share: float
    longest: int
    seed: int

    @staticmethod
    def of(base: BaseModel, config: TrainConfig, train: Sequence[Example]) -> Contexts:
        """As long as `config` says, and as the model's context has room for."""
        ending = base.encode(BREAK)
        room = base.context_length - config.tokens - config.row_tokens - len(ending) - 2
        longest = min(config.context_tokens, room) if config.context else 0
        if longest < 1:
            return Contexts((), (), (), 0.0, 0, config.seed)
        own = tuple(chain.from_iterable(example.ids for example in train))
        return Contexts(neutral_ids(base), own, tuple(ending), config.context, longest, config.seed)

    def identity(self) -> dict[str, str]:
        """What a resumed run must agree with."""
        if not self.longest:
            return {}
        return {"text between": hashlib.sha256(repr((self.neutral, self.longest)).encode()).hexdigest()}

    def at(self, step: int) -> tuple[int, ...]:
        """The ids of step `step`'s context, which all its rows share; none in the other steps.

        Steps with a context are spread evenly, and lengths depend on the step alone: runs that are trained together agree in both.
        """
        if not self.longest or math.floor((step + 1) * self.share) == math.floor(step * self.share):
            return ()
        shortest = min(SHORTEST, self.longest)
        length = random.Random(step).randint(shortest, self.longest)
        own = random.Random(f"{self.seed} {step}")
        text = self.own if own.random() < OWN and len(self.own) > length else self.neutral
        start = own.randrange(max(1, len(text) - length))
        return (*text[start : start + length], *self.ending)


def neutral_ids(base: BaseModel) -> tuple[int, ...]:
    """The packaged neutral texts, one after another."""
    return tuple(chain.from_iterable(base.encode(text + BREAK) for text in _neutral_texts()))


@lru_cache(maxsize=1)
def _neutral_texts() -> tuple[str, ...]:
    folder = resources.files("sordino") / "data" / "contexts"
    files = sorted((item for item in folder.iterdir() if item.name[0].isdigit()), key=lambda item: item.name)
    return tuple(item.read_text(encoding="utf-8") for item in files)
