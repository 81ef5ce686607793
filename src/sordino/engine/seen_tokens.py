"""The tokens of a row, counted as they come, for repetition penalties."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class SeenTokens:
    """ids: the context, then the new tokens. new: how often each new token was drawn.

    window: how many of the last tokens `last_places` reports (0: all). skip: how many of the first it never reports. Each token is
    counted once, so a step's cost does not grow with the text.
    """

    def __init__(self, context_ids: Sequence[int], window: int = 0, *, skip: int = 0) -> None:
        self.ids, self.new = list(context_ids), Counter[int]()
        self._window, self._skip = window, skip
        self._last: dict[int, int] = {}
        self._counted = 0

    def push(self, token: int) -> None:
        self.ids.append(token)
        self.new[token] += 1

    @property
    def start(self) -> int:
        """Where the window begins."""
        return max(self._skip, len(self.ids) - self._window) if self._window else self._skip

    def last_places(self) -> tuple[Ids, Ids]:
        """The different tokens of the window, and the last position of each in `ids`."""
        start = self.start
        left = range(max(0, self._counted - self._window), min(self._counted, start))
        for at in range(max(self._counted, start), len(self.ids)):
            self._last[self.ids[at]] = at
        for at in left:
            if self._last.get(self.ids[at]) == at:
                del self._last[self.ids[at]]
        self._counted = len(self.ids)
        count = len(self._last)
        return np.fromiter(self._last, np.int64, count), np.fromiter(self._last.values(), np.int64, count)
