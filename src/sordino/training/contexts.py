"""Text between a soft prompt and its rows, which keeps the prompt's effect from fading in a long text.

A row that always begins right after the prompt teaches it nothing about text further away. So in a share of the steps, other text
stands between: neutral text of several registers from the package, or text of the run itself. The rows of a step share it: prompt
and context are one longer prefix, which runs once.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice

from sordino.models.base_model import BaseModel
from sordino.texts.examples import Example
from sordino.texts.neutral import BREAK, training_texts
from sordino.training.config import TrainConfig

# The share of the contexts that is the run's own text.
OWN = 0.25
# Shorter contexts change little. This is also how long they are at first.
SHORTEST = 64


@dataclass(frozen=True)
class Contexts:
    """The contexts of a run, as a function of the step. longest: tokens, at the end of the run; 0: there are none."""

    neutral: Sequence[int]
    own: Sequence[Example]
    ending: Sequence[int]
    share: float
    longest: int
    seed: int
    steps: int

    @staticmethod
    def of(
        base: BaseModel, config: TrainConfig, train: Sequence[Example], neutral: Sequence[int] | None = None
    ) -> Contexts:
        """Contexts as long as `config` says, or as the model's context has room for. neutral: `neutral_ids`, if known."""
        ending = base.encode(BREAK)
        room = base.context_length - config.tokens - config.row_tokens - len(ending) - 2
        # An encoder reads its whole input at once: no text draws away from the prompt.
        longest = min(config.context_tokens, room) if config.context and base.encoder_decoder is None else 0
        if longest < 1:
            return Contexts((), (), (), 0.0, 0, config.seed, config.steps)
        neutral = neutral_ids(base) if neutral is None else neutral
        return Contexts(neutral, train, tuple(ending), config.context, longest, config.seed, config.steps)

    def identity(self) -> dict[str, str]:
        """What must be the same when the run is resumed."""
        if not self.longest:
            return {}
        return {"text between": hashlib.sha256(repr((self.neutral, self.longest, "growing")).encode()).hexdigest()}

    def at(self, step: int) -> tuple[int, ...]:
        """The ids of step `step`'s context, which all its rows share; none in the other steps.

        Steps with a context are spread evenly. The longest length grows with the run: long contexts cost most, and teach little
        before short ones are learned. All this depends on the step alone: runs of as many steps that are trained together agree.
        """
        if not self.longest or math.floor((step + 1) * self.share) == math.floor(step * self.share):
            return ()
        shortest = min(SHORTEST, self.longest)
        most = shortest + round((self.longest - shortest) * min(1.0, (step + 1) / self.steps))
        length = random.Random(step).randint(shortest, most)
        drawn = random.Random(f"{self.seed} {step}")
        if drawn.random() < OWN and len(own := self._own_text(drawn.randrange(len(self.own)), length)) == length:
            return (*own, *self.ending)
        start = drawn.randrange(max(1, len(self.neutral) - length))
        return (*self.neutral[start : start + length], *self.ending)

    def of_validation(self) -> tuple[int, ...]:
        """The context of a part of the validation rows, the same at every step; empty in a run without contexts."""
        return (*self.neutral[: self.longest // 2], *self.ending) if self.longest else ()

    def _own_text(self, first: int, length: int) -> tuple[int, ...]:
        """The run's text from its example `first` on, at most to the end. Large texts are read here, never held."""
        following = (self.own[at] for at in range(first, len(self.own)))
        return tuple(islice(chain.from_iterable(example.ids for example in following), length))


def neutral_ids(base: BaseModel, most: int | None = None) -> tuple[int, ...]:
    """The packaged neutral texts for training, one after another; or their first `most` tokens."""
    return tuple(islice(chain.from_iterable(base.encode(piece.text + BREAK) for piece in training_texts()), most))
