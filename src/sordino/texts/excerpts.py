"""Real text to start from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sordino.texts.examples import Example


def excerpt(examples: Sequence[Example], tokens: int, random: torch.Generator) -> list[int]:
    """Consecutive token ids from a random place of the texts, running on into the next example where one ends."""
    at = int(torch.randint(len(examples), (), generator=random))
    ids = list(examples[at].ids)
    start = int(torch.randint(max(1, len(ids) - tokens + 1), (), generator=random))
    ids = ids[start:]
    while len(ids) < tokens:
        at = (at + 1) % len(examples)
        ids.extend(examples[at].ids)
    return ids[:tokens]
