"""The loss of the same tokens under every condition.

The texts are cut into windows, and each window stands behind the condition's prefix. The first token of a window counts only
if every condition can predict it: without a prompt, on a model without BOS, nothing can.

Shape key: W windows, C conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sordino.errors import DataError
from sordino.evaluation.conditions import Condition
from sordino.evaluation.confidence import Floats
from sordino.forward.token_losses import Progress as Progress
from sordino.forward.token_losses import losses
from sordino.models.base_model import BaseModel
from sordino.texts.examples import Example, make_examples
from sordino.texts.pieces import Piece


def windows_of(base: BaseModel, pieces: Sequence[Piece], *, row_tokens: int, limit: int, first: bool) -> list[Example]:
    """The texts as windows of at most `row_tokens`, thinned evenly to `limit` targets (0: all of them).

    first: whether the windows' first tokens are targets.

    Raises DataError if no target is left.
    """
    made = make_examples(pieces, base, max_tokens=row_tokens).examples
    if not first:
        made = tuple(replace(example, labelled=(False, *example.labelled[1:])) for example in made)
    windows = [example for example in made if any(example.labelled)]
    if not windows:
        raise DataError(
            "the held-out texts are too short to measure", where="--heldout", expected="at least two tokens"
        )
    total = sum(sum(window.labelled) for window in windows)
    if not limit or total <= limit:
        return windows
    kept = max(1, len(windows) * limit // total)
    return [windows[at * len(windows) // kept] for at in range(kept)]


def target_bytes(base: BaseModel, windows: Sequence[Example]) -> int:
    """UTF-8 bytes of the targets' text. Whole windows are decoded and what is no target is taken off again: tokens decoded
    alone would lose spaces and parts of characters. Markers such as an end of turn have no bytes.
    """
    every = [token for window in windows for token in window.ids]
    others = [t for window in windows for t, target in zip(window.ids, window.labelled, strict=True) if not target]
    return len(base.decode(every).encode()) - len(base.decode(others).encode())


def nll_of_windows(
    base: BaseModel,
    conditions: Sequence[Condition],
    windows: Sequence[Example],
    *,
    pass_tokens: int,
    progress: Progress = lambda done, total: None,
) -> Floats:
    """The summed NLL in nats [W, C] of each window's targets behind each condition's prefix."""
    nll_WC: Floats = losses(base, conditions, windows, pass_tokens=pass_tokens, progress=progress).of_examples().numpy()
    return nll_WC
