"""Drawing tokens, and which of their text may be shown already. Pure functions, no model.

Shape key: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sordino.errors import ConfigError

# What tokenizers decode the bytes of a character to while some of them are missing. A row that ends there drops them.
HALF = "\ufffd"


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off."""

    max_tokens: int = 120
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self.max_tokens >= 1, "--max-tokens", "1 or more", self.max_tokens)
        _check(0 <= self.temperature < float("inf"), "--temperature", "0 or more", self.temperature)
        _check(self.top_k >= 0, "--top-k", "0 or more", self.top_k)
        _check(0 < self.top_p <= 1, "--top-p", "above 0, at most 1", self.top_p)
        _check(0 <= self.min_p <= 1, "--min-p", "0 to 1", self.min_p)
        _check(0 < self.repetition_penalty < float("inf"), "--repetition-penalty", "above 0", self.repetition_penalty)
        _check(all(self.stop), "--stop", "a text of one character or more", "an empty one")


def sample(logits_V: Tensor, seen_ids: Sequence[int], sampling: Sampling, random: torch.Generator) -> int:
    """Draw one token id from float32 logits [V]. Order: repetition penalty, temperature, top_k, top_p, min_p."""
    logits_V = logits_V.clone()
    if sampling.repetition_penalty != 1.0 and seen_ids:
        seen = torch.tensor(sorted(set(seen_ids)), device=logits_V.device)
        values = logits_V[seen]
        penalty = sampling.repetition_penalty
        logits_V[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    # Drawn on the CPU: one stream per seed, whatever the device.
    probs_V = torch.softmax(logits_V.cpu().double() / sampling.temperature, dim=0)
    sorted_V, order_V = probs_V.sort(descending=True, stable=True)
    keep_V = torch.ones_like(sorted_V, dtype=torch.bool)
    if sampling.top_k:
        keep_V[sampling.top_k :] = False
    keep_V &= (sorted_V.cumsum(0) - sorted_V) < sampling.top_p
    keep_V &= sorted_V >= sampling.min_p * sorted_V[0]
    keep_V[0] = True
    weights_V = sorted_V * keep_V
    threshold = torch.rand((), generator=random, dtype=torch.float64) * weights_V.sum()
    chosen = int(torch.searchsorted(weights_V.cumsum(0), threshold).clamp(max=int(keep_V.sum()) - 1))
    return int(order_V[chosen])


def held_back(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of `text` must wait: half a character, and the beginning of a stop string before it."""
    whole = text.rstrip(HALF)
    held = 0
    for word in stop:
        for size in range(min(len(word) - 1, len(whole)), held, -1):
            if whole.endswith(word[:size]):
                held = size
                break
    return len(text) - len(whole) + held


def _check(holds: bool, flag: str, expected: str, got: object) -> None:
    if not holds:
        raise ConfigError("a sampling setting is out of range", where=flag, expected=expected, got=got)
