"""The loss of the same tokens under every condition.

Texts are cut into windows, and each window follows the condition's prefix. A window's first token is a target only if every
condition can predict it: without a prompt, on a model without BOS, there is nothing to predict it from.

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
from sordino.texts.example_store import evenly
from sordino.texts.examples import Example, make_examples
from sordino.texts.joined import shared_beginning
from sordino.texts.pairs import Objective
from sordino.texts.pieces import Piece

# Characters of held-out text that are tokenized for each measured target: about 60 tokens.
_CHARACTERS_A_TARGET = 256


def shifted(progress: Progress, before: int, total: int) -> Progress:
    """Progress of a part, reported as progress of the whole: `before` of `total` were done earlier."""
    return lambda done, _: progress(before + done, total)


def windows_of(base: BaseModel, pieces: Sequence[Piece], *, row_tokens: int, limit: int, first: bool) -> list[Example]:
    """The texts as windows of at most `row_tokens`, thinned evenly to `limit` targets (0: all of them).

    first: whether the windows' first tokens are targets. Raises DataError if no target is left.
    """
    return windows_behind(base, pieces, (), row_tokens=row_tokens, limit=limit, first=first)[0]


def windows_behind(
    base: BaseModel,
    pieces: Sequence[Piece],
    texts: Sequence[str],
    *,
    row_tokens: int,
    limit: int,
    first: bool,
    objective: Objective = "prefix-lm",
) -> list[list[Example]]:
    """The windows of `windows_of`, then the same windows with each of `texts` in front, tokenized as one. objective: as in
    `make_examples`.
    """
    pieces = _enough(pieces, limit)
    made = [
        make_examples(pieces, base, max_tokens=row_tokens, behind=text, objective=objective).examples
        for text in dict.fromkeys(("", *texts))
    ]
    # A decoder's first token of an answer follows its start, which is always there.
    if not first and base.encoder_decoder is None:
        opened = [example.labelled[0] for example in made[0]]
        made = [tuple(map(_without_first, of, opened)) for of in made]
    usable = [at for at, example in enumerate(made[0]) if any(example.labelled)]
    if not usable:
        raise DataError(
            "the held-out texts are too short to measure", where="--heldout", expected="at least two tokens"
        )
    total = sum(sum(made[0][at].labelled) for at in usable)
    kept = max(1, len(usable) * limit // total) if limit and total > limit else len(usable)
    return [[of[at] for at in evenly(usable, kept)] for of in made]


def _enough(pieces: Sequence[Piece], limit: int) -> Sequence[Piece]:
    """Pieces spread evenly over texts that hold far more than the limit: no others are tokenized."""
    kept = max(limit, len(pieces) * _CHARACTERS_A_TARGET * limit // max(1, sum(piece.size for piece in pieces)))
    return pieces if not limit or kept >= len(pieces) else evenly(pieces, kept)


def _without_first(example: Example, opened: bool) -> Example:
    """The window without its first target, if it opens with one."""
    first = example.labelled.index(True) if opened else len(example.labelled)
    return replace(example, labelled=tuple(known and at != first for at, known in enumerate(example.labelled)))


def behind_text(condition: Condition, windows: Sequence[Example]) -> tuple[Condition, list[Example]]:
    """From windows that begin with the condition's text: the prefix that all share, and the rest of each window."""
    same = shared_beginning([condition.ids, *(window.ids for window in windows)])
    same = min([same, *(window.input for window in windows if window.input is not None)])
    return condition.opening(same), [
        replace(
            window,
            ids=window.ids[same:],
            labelled=window.labelled[same:],
            input=None if window.input is None else window.input - same,
        )
        for window in windows
    ]


def target_bytes(base: BaseModel, windows: Sequence[Example]) -> int:
    """UTF-8 bytes of the targets' text: of whole windows, less those of the other tokens.

    Tokens decoded one by one would lose spaces and parts of characters. Markers such as an end of turn have no bytes.
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
    """The summed NLL in nats [W, C] of each window's targets after each condition's prefix."""
    nll_WC: Floats = losses(base, conditions, windows, pass_tokens=pass_tokens, progress=progress).of_examples().numpy()
    return nll_WC
