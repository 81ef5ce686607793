"""How much attention text gives to a soft prompt: its strength, and how that is held as the text grows.

The longer the text, the smaller the share of attention that a prompt of fixed length gets, and so its effect. To hold it, the
attention weight that the t-th token of the text gives to the prompt's positions is multiplied by

    w(t) = strength * max(1, t / hold)

which is log w(t) added to the scores, in every layer. From `hold` tokens on, the prompt keeps about the share that it had there.
Related: split-softmax (Li et al. 2024, arXiv 2402.10962), PASTA (Zhang et al. 2023, arXiv 2311.02262), both for instructions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sordino.errors import ConfigError

LEAST_STRENGTH, MOST_STRENGTH = 0.25, 4.0
MOST_HOLD = 1_000_000
# What is offered for a prompt whose file says none.
OFFERED_HOLD = 128
# In tokens; "off" or 0: not held.
Hold = int | Literal["off"]
# The strengths that a program can give a prompt: 1 alone, whole numbers, or any.
Strengths = Literal["one", "whole", "any"]
# What a program that gives only these does not support, and what to do.
UNSUPPORTED_STRENGTHS: dict[Strengths, tuple[str, str]] = {
    "one": ("strength", "ask for strength 1"),
    "whole": ("strength that is no whole number", "ask for strength 1, 2, 3 or 4"),
}


def can_give(strengths: Strengths, strength: float) -> bool:
    """Whether a program that gives these strengths can give this one."""
    return strengths == "any" or strength == 1 or (strengths == "whole" and strength == int(strength))


@dataclass(frozen=True)
class PromptAttention:
    """hold: T, in tokens of text; None: not held. strength: s, from 0.25 to 4; 1 changes nothing. Raises ConfigError."""

    hold: int | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.hold is not None and not (type(self.hold) is int and 1 <= self.hold <= MOST_HOLD):
            raise ConfigError(
                "out of range",
                where="hold",
                expected=f"a whole number of tokens from 1 to {MOST_HOLD}, or off",
                got=repr(self.hold),
            )
        if type(self.strength) not in (int, float) or not LEAST_STRENGTH <= self.strength <= MOST_STRENGTH:
            raise ConfigError(
                "out of range",
                where="strength",
                expected=f"a number from {LEAST_STRENGTH} to {MOST_STRENGTH:g}",
                got=repr(self.strength),
            )

    def changed(self, hold: Hold | None, strength: float | None) -> PromptAttention:
        """With another hold or strength; None leaves it as it is. Raises ConfigError."""
        held = self.hold if hold is None else None if hold in (0, "off") else hold
        # PromptAttention refuses any other text.
        return PromptAttention(held, self.strength if strength is None else strength)  # type: ignore[arg-type]

    def __str__(self) -> str:
        held = [] if self.hold is None else [f"hold {self.hold}"]
        return ", ".join([*held, *([f"strength {self.strength:g}"] if self.strength != 1 else [])]) or "plain"

    @property
    def plain(self) -> bool:
        """Whether attention is as the model computes it."""
        return self.hold is None and self.strength == 1

    def weight(self, tokens: int) -> float:
        """w(t) for the `tokens`-th token of the text, the first being 1."""
        return self.strength * (1 if self.hold is None else max(1.0, tokens / self.hold))


PLAIN = PromptAttention()
