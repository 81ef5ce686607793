"""Prefixes of soft prompts, and the texts that followed them, kept for the next request.

The key is (fingerprint of the base model, content hash, placement), never a name; behind it, token ids. The least recently used
is evicted first; a prefix that running rows use stays. Texts may take half of the budget: many conversations do not push all
prefixes out. No operation costs more because more is cached.

Shape key: L layers, H key-value heads, S positions, C channels, D model width. Axis 1 (2): keys, values.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sordino.engine.token_tree import TokenTree

Key = tuple[str, str, str]
# A text shorter than this is not worth keeping: running it again costs less than the copy is worth.
WORTH_KEEPING = 32
T = TypeVar("T")


@dataclass(eq=False)
class CachedPrefix(Generic[T]):
    """The state behind a soft prompt (no ids) or behind it and a text. users: running rows that use it. last_use: a count of uses
    of the whole cache.
    """

    key: Key
    ids: tuple[int, ...]
    state: T
    bytes: int
    users: int = 0
    last_use: int = 0


class PrefixCache(Generic[T]):
    """States by key and ids, within a budget of bytes. hits, misses and evictions count prefixes of soft prompts."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = self.hits = self.misses = self.evictions = self.text_hits = self.text_evictions = 0
        self._text_bytes = self._uses = 0
        self._prompts: dict[Key, CachedPrefix[T]] = {}
        self._trees: dict[Key, TokenTree[CachedPrefix[T]]] = {}
        # What may be evicted, the least recently used first: prefixes without users, and texts.
        self._idle: OrderedDict[CachedPrefix[T], None] = OrderedDict()
        self._texts: OrderedDict[CachedPrefix[T], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prompts) + len(self._texts)

    def prompt(self, key: Key) -> CachedPrefix[T] | None:
        """The prefix of a soft prompt, with one user more, or None."""
        kept = self._prompts.get(key)
        if kept is None:
            return None
        self.hits += 1
        kept.users += 1
        self._idle.pop(kept, None)
        return kept

    def longest(
        self, key: Key, ids: Sequence[int], usable: Callable[[CachedPrefix[T], int], bool] = lambda kept, shared: True
    ) -> tuple[CachedPrefix[T], int] | None:
        """A text kept behind this soft prompt that begins most like `ids`, and how many ids they share (1 or more).

        usable: whether the beginning of so many ids can be had from a kept text. Of texts that share equally many it is asked
        of a few.
        """
        if (tree := self._trees.get(key)) is None:
            return None
        found = next(((kept, shared) for kept, shared in tree.alike(ids) if usable(kept, shared)), None)
        if found is not None:
            self.text_hits += 1
            self._use(found[0], self._texts)
        return found

    def has(self, key: Key) -> bool:
        """Whether a soft prompt's prefix is here; nothing is counted."""
        return key in self._prompts

    def keep_prompt(self, key: Key, state: T, size: int) -> CachedPrefix[T]:
        """Keep the prefix of a soft prompt that has none, at first with one user, who calls `release` at the end."""
        assert key not in self._prompts
        self.misses += 1
        kept = self._prompts[key] = CachedPrefix(key, (), state, size, users=1)
        self.bytes += size
        self._shrink()
        return kept

    def release(self, kept: CachedPrefix[T]) -> None:
        """One user less; without any it may be evicted."""
        kept.users -= 1
        if not kept.users:
            self._use(kept, self._idle)
        self._shrink()

    def would_keep(self, size: int) -> bool:
        """Whether a text of so many bytes is not too large to keep."""
        return size <= self.budget // 2

    def keep_text(self, key: Key, ids: Sequence[int], state: T, size: int) -> None:
        """Keep a text behind a soft prompt. It replaces kept texts that it continues."""
        ids = tuple(ids)
        if not ids or not self.would_keep(size):
            return
        tree = self._trees.setdefault(key, TokenTree())
        for other in tree.beginnings(ids):
            self._drop(other)
        kept = CachedPrefix(key, ids, state, size)
        # Anew: dropping the last text of a soft prompt drops its tree.
        self._trees.setdefault(key, tree).put(ids, kept)
        self._use(kept, self._texts)
        self.bytes += size
        self._text_bytes += size
        self._shrink()

    def _use(self, kept: CachedPrefix[T], among: OrderedDict[CachedPrefix[T], None]) -> None:
        self._uses += 1
        kept.last_use = self._uses
        among[kept] = None
        among.move_to_end(kept)

    def _shrink(self) -> None:
        while self._text_bytes > self.budget // 2:
            self._evict(next(iter(self._texts)))
        while self.bytes > self.budget and (self._idle or self._texts):
            oldest = [next(iter(some)) for some in (self._idle, self._texts) if some]
            self._evict(min(oldest, key=lambda kept: kept.last_use))

    def _evict(self, kept: CachedPrefix[T]) -> None:
        if kept.ids:
            self.text_evictions += 1
        else:
            self.evictions += 1
        self._drop(kept)

    def _drop(self, kept: CachedPrefix[T]) -> None:
        self.bytes -= kept.bytes
        if not kept.ids:
            del self._idle[kept], self._prompts[kept.key]
            return
        del self._texts[kept]
        self._text_bytes -= kept.bytes
        tree = self._trees[kept.key]
        tree.remove(kept.ids)
        if not tree:
            del self._trees[kept.key]
