"""The token that a model is least likely to write. The new tokens' rows of the output head are copies of its row.

Zeros would be wrong: a logit of 0 is above most others.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from sordino.engine.runners.runner import Runner, Span

# Prose, a conversation, a program, other languages: what is unlikely after all of these.
TEXTS = (
    "The keeper wrote in the log that the lamp was clean and that the wind had gone round to the west. Three ships went by.",
    "User: What is the capital of France?\nAssistant: Paris, for most of the time since 987.\nUser: Thank you!",
    'import json\n\ndef main(path: str) -> int:\n    """Count lines."""\n    return sum(1 for _ in open(path))\n',
    "Der Wärter schrieb, die Lampe sei sauber. El viento venía del oeste. 灯塔很安静。 Маяк молчал.",
)
# Tokens of each: a large vocabulary takes a megabyte a token.
TOKENS = 64


def least_likely(runner: Runner, reserved: Collection[int]) -> int:
    """The id, of those `reserved` for other uses than text, whose highest probability after these texts is the lowest; of all ids
    where none is reserved. Runs one row at a time."""
    highest_V: np.ndarray | None = None
    model = runner.model
    for number, text in enumerate(TEXTS):
        ids = model.encode(text)[:TOKENS]
        if runner.open(number, None, ids) is None or not runner.grow(number, len(ids)):
            raise AssertionError("room for one row of this length was asked for")
        logits_PV = np.asarray(runner.run([Span(number, ids, len(ids))]), dtype=np.float32)
        runner.close(number, [])
        top_P1 = logits_PV.max(axis=1, keepdims=True)
        sums_P1 = np.exp(logits_PV - top_P1).sum(axis=1, keepdims=True)
        likely_V = (logits_PV - top_P1 - np.log(sums_P1)).max(axis=0)
        highest_V = likely_V if highest_V is None else np.maximum(highest_V, likely_V)
    assert highest_V is not None
    candidates = sorted(reserved) or list(range(len(highest_V)))
    return min(candidates, key=lambda one: float(highest_V[one]))
