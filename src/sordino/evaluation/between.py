"""Texts that stand between a soft prompt and the text that is measured: neutral ones, more of the held-out texts, and what the
model itself writes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sordino.engine.generate import TextRequest, complete
from sordino.engine.sampling import Sampling
from sordino.evaluation.conditions import consecutive_ids
from sordino.evaluation.config import Between
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import Mixture
from sordino.prompts.prompt import Prompt
from sordino.texts.neutral import BREAK
from sordino.texts.pieces import Piece

# The model writes several texts of about this many tokens side by side: one long one would take minutes.
_WRITTEN = 384

Ids = tuple[int, ...]


@dataclass(frozen=True)
class BetweenTexts:
    """Texts of one kind, one for each part of the held-out texts. writer: the soft prompt, by its label, that the model wrote them
    with; "" for the other kinds.
    """

    kind: Between
    texts: tuple[Ids, ...]
    writer: str = ""

    @property
    def tokens(self) -> int:
        """The length of the shortest text."""
        return min(map(len, self.texts))


def parts_of(pieces: Sequence[Piece], count: int) -> list[tuple[Piece, ...]]:
    """The pieces in order, in at most `count` parts of about the same length. A plain text may be cut."""
    total, filled = sum(piece.size for piece in pieces), 0
    parts: list[list[Piece]] = [[]]
    left = deque(pieces)
    while left:
        piece, end = left.popleft(), total * len(parts) / count
        halves = _cut(piece, round(end) - filled) if len(parts) < count and filled + piece.size > end else None
        if halves is not None:
            piece, rest = halves
            left.appendleft(rest)
        parts[-1].append(piece)
        filled += piece.size
        if len(parts) < count and (halves is not None or filled >= end):
            parts.append([])
    return [tuple(part) for part in parts if part]


def _cut(piece: Piece, at: int) -> tuple[Piece, Piece] | None:
    """A plain text in two, after the first line break after `at` characters; None where one of them would be all white space."""
    if piece.kind != "text":
        return None
    end = piece.text.find("\n", at) + 1 or piece.text.find(" ", at) + 1
    first, second = piece.text[:end].rstrip(), piece.text[end:].lstrip("\n")
    return (replace(piece, text=first), replace(piece, text=second)) if first and second.strip() else None


def foreign_texts(base: BaseModel, texts: Sequence[Piece], tokens: int, parts: int, *, seed: int) -> BetweenTexts:
    """`tokens` tokens of `texts` for each part, or as many as there are."""
    random = np.random.default_rng(seed)
    return BetweenTexts("foreign", tuple(tuple(consecutive_ids(base, texts, tokens, random)) for _ in range(parts)))


def own_texts(
    base: BaseModel, parts: Sequence[Sequence[Piece]], training: Sequence[Piece], tokens: int, *, seed: int
) -> BetweenTexts:
    """For each part, text of the other parts, and of the training texts where those are too short."""
    random = np.random.default_rng(seed)
    found = []
    for at in range(len(parts)):
        others = [piece for other, part in enumerate(parts) if other != at for piece in part]
        ids = consecutive_ids(base, others, tokens, random) if others else []
        if training and len(ids) < tokens:
            ids += consecutive_ids(base, training, tokens - len(ids), random)
        found.append(tuple(ids))
    return BetweenTexts("own", tuple(found))


def written_texts(
    base: BaseModel, label: str, prompt: Prompt | Mixture, tokens: int, parts: int, *, seed: int
) -> BetweenTexts:
    """For each part, what the model writes after nothing but the soft prompt: texts of about _WRITTEN tokens, one after another.

    It does not end a text by itself.
    """
    each = -(-tokens // _WRITTEN)
    requests = [TextRequest("", prompt, seed + number) for number in range(parts * each)]
    # Read again, a text may be of fewer tokens than it was written in.
    length = -(-tokens // each) * 9 // 8 + 1
    endless = tuple((token, -1e9) for token in sorted(base.stop_ids))
    written = complete(base, requests, Sampling(max_tokens=length, logit_bias=endless))
    joined = [BREAK.join(written[at * each : (at + 1) * each]) for at in range(parts)]
    return BetweenTexts("written", tuple(tuple(base.encode(text)[:tokens]) for text in joined), label)
