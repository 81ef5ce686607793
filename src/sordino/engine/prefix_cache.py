"""What was computed once and may be wanted again: soft prompts' prefixes, and the texts that followed them.

The key is (fingerprint of the base model, content hash, placement), never a name; behind it, token ids. Least recently used
goes first; what running rows stand on stays. Texts may take half of the room: many conversations do not push all prefixes out.

Shape key: L layers, H key-value heads, S positions, C channels, D model width. Axis 1 (2): keys, values.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = tuple[str, str, str]
# A text shorter than this is not worth keeping: running it again costs less than the copy is worth.
WORTH_KEEPING = 32
T = TypeVar("T")


@dataclass(eq=False)
class Kept(Generic[T]):
    """The state behind a soft prompt (no ids) or behind it and a text. users: running rows that stand on it."""

    key: Key
    ids: tuple[int, ...]
    state: T
    bytes: int
    users: int = 0


class PrefixCache(Generic[T]):
    """States by key and ids, within a budget of bytes. hits, misses and evictions count prefixes of soft prompts."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = self.hits = self.misses = self.evictions = self.text_hits = 0
        self._text_bytes = 0
        self._kept: OrderedDict[tuple[Key, tuple[int, ...]], Kept[T]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def prompt(self, key: Key) -> Kept[T] | None:
        """The prefix of a soft prompt, with one user more, or None."""
        kept = self._kept.get((key, ()))
        if kept is None:
            return None
        self.hits += 1
        kept.users += 1
        self._kept.move_to_end((key, ()))
        return kept

    def longest(
        self, key: Key, ids: Sequence[int], usable: Callable[[Kept[T], int], bool] = lambda kept, shared: True
    ) -> tuple[Kept[T], int] | None:
        """The text kept behind this soft prompt that begins most like `ids`, and how many ids they share (1 or more).

        usable: whether the beginning of so many ids can be had from a kept text.
        """
        best: Kept[T] | None = None
        shared = 0
        for (kept_key, kept_ids), kept in self._kept.items():
            if kept_key == key and kept_ids and (length := _shared(kept_ids, ids)) > shared and usable(kept, length):
                best, shared = kept, length
        if best is None:
            return None
        self.text_hits += 1
        self._kept.move_to_end((best.key, best.ids))
        return best, shared

    def has(self, key: Key) -> bool:
        """Whether a soft prompt's prefix is here; nothing is counted."""
        return (key, ()) in self._kept

    def keep_prompt(self, key: Key, state: T, size: int) -> Kept[T]:
        """Keep a soft prompt's prefix, at first with one user. Whoever is done with it says `release`."""
        self.misses += 1
        kept = self._kept[key, ()] = Kept(key, (), state, size, users=1)
        self.bytes += size
        self._shrink()
        return kept

    def release(self, kept: Kept[T]) -> None:
        """One user less; without any it may be let go."""
        kept.users -= 1
        self._shrink()

    def would_keep(self, size: int) -> bool:
        """Whether a text of so many bytes is not too large to keep."""
        return size <= self.budget // 2

    def keep_text(self, key: Key, ids: Sequence[int], state: T, size: int) -> None:
        """Keep a text behind a soft prompt. It takes the place of kept texts that it goes on."""
        ids = tuple(ids)
        if not self.would_keep(size):
            return
        for other in [of for of in self._kept if of[0] == key and of[1] and of[1] == ids[: len(of[1])]]:
            self._drop(other)
        self._kept[key, ids] = Kept(key, ids, state, size)
        self.bytes += size
        self._text_bytes += size
        self._shrink()

    def _shrink(self) -> None:
        for at, kept in list(self._kept.items()):
            too_much_text = bool(kept.ids) and self._text_bytes > self.budget // 2
            if too_much_text or (self.bytes > self.budget and not kept.users):
                self._drop(at)
                self.evictions += 1

    def _drop(self, at: tuple[Key, tuple[int, ...]]) -> None:
        kept = self._kept.pop(at)
        self.bytes -= kept.bytes
        self._text_bytes -= kept.bytes if kept.ids else 0


def _shared(some: Sequence[int], others: Sequence[int]) -> int:
    count = 0
    for one, other in zip(some, others, strict=False):
        if one != other:
            break
        count += 1
    return count
