"""Prefixes of soft prompts, and the texts that followed them, cached for the next request.

The key is (fingerprint of the base model, content hash, placement), never a name; for texts then attention and token ids, as text
gives a prompt attention and no prefix depends on it. The least recently used entry is evicted first; a prefix that running rows
use stays. Texts may take half of the budget, so that many conversations do not evict all prefixes. No operation costs more because
more is cached.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sordino.engine.requests import CacheUse
from sordino.engine.token_tree import TokenTree
from sordino.prompts.attention import PLAIN, PromptAttention
from sordino.prompts.prompt import Prompt

Key = tuple[str, str, str]
# Running a shorter text again costs less than caching it.
WORTH_KEEPING = 32
T = TypeVar("T")


def prefix_key(fingerprint: str, prompt: Prompt | None) -> Key:
    """fingerprint: the base model's."""
    if prompt is None:
        return fingerprint, "", ""
    return fingerprint, prompt.content_hash, prompt.metadata.placement


@dataclass(eq=False)
class CachedPrefix(Generic[T]):
    """The state after a soft prompt (no ids), or after it and a text, to which it had this attention. users: running rows that use
    it. last_use: a count of uses of the whole cache.
    """

    key: Key
    ids: tuple[int, ...]
    state: T
    bytes: int
    users: int = 0
    last_use: int = 0
    attention: PromptAttention = PLAIN


class PrefixCache(Generic[T]):
    """States by key and ids, within a budget of bytes. hits, misses and evictions count prefixes of soft prompts."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = self.hits = self.misses = self.evictions = self.text_hits = self.text_evictions = 0
        self._text_bytes = self._uses = 0
        self._prompts: dict[Key, CachedPrefix[T]] = {}
        self._trees: dict[tuple[Key, PromptAttention], TokenTree[CachedPrefix[T]]] = {}
        # What may be evicted, the least recently used first: prefixes without users, and texts.
        self._idle: OrderedDict[CachedPrefix[T], None] = OrderedDict()
        self._texts: OrderedDict[CachedPrefix[T], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prompts) + len(self._texts)

    def use(self) -> CacheUse:
        return CacheUse(self.hits, self.misses, self.evictions, self.text_hits, self.text_evictions, self.bytes)

    def prompt(self, key: Key) -> CachedPrefix[T] | None:
        """The prefix of a soft prompt, with one user more, or None."""
        prefix = self._prompts.get(key)
        if prefix is None:
            return None
        self.hits += 1
        prefix.users += 1
        self._idle.pop(prefix, None)
        return prefix

    def longest(
        self,
        key: Key,
        ids: Sequence[int],
        usable: Callable[[CachedPrefix[T], int], bool] = lambda text, shared: True,
        *,
        attention: PromptAttention = PLAIN,
    ) -> tuple[CachedPrefix[T], int] | None:
        """The cached text after this soft prompt that shares most of its first ids with `ids`, and how many (1 or more).

        usable: whether a cached text can give its first `shared` ids. Of texts that share equally many, it is called for a few.
        """
        if (tree := self._trees.get((key, attention))) is None:
            return None
        found = next(((text, shared) for text, shared in tree.alike(ids) if usable(text, shared)), None)
        if found is not None:
            self.text_hits += 1
            self._use(found[0], self._texts)
        return found

    def has(self, key: Key) -> bool:
        """Whether a soft prompt's prefix is here; nothing is counted."""
        return key in self._prompts

    def keep_prompt(self, key: Key, state: T, size: int) -> CachedPrefix[T]:
        """Cache the prefix of a soft prompt that has none, with one user, who calls `release` at the end."""
        assert key not in self._prompts
        self.misses += 1
        prefix = self._prompts[key] = CachedPrefix(key, (), state, size, users=1)
        self.bytes += size
        self._shrink()
        return prefix

    def release(self, prefix: CachedPrefix[T]) -> None:
        """One user less; without any it may be evicted."""
        prefix.users -= 1
        if not prefix.users:
            self._use(prefix, self._idle)
        self._shrink()

    def would_keep(self, size: int) -> bool:
        """Whether a text of so many bytes is not too large to cache."""
        return size <= self.budget // 2

    def keep_text(
        self, key: Key, ids: Sequence[int], state: T, size: int, *, attention: PromptAttention = PLAIN
    ) -> None:
        """Cache a text after a soft prompt. It replaces cached texts that it continues."""
        ids = tuple(ids)
        if not ids or not self.would_keep(size):
            return
        tree = self._trees.setdefault((key, attention), TokenTree())
        for other in tree.beginnings(ids):
            self._drop(other)
        text = CachedPrefix(key, ids, state, size, attention=attention)
        # Again: dropping the last text of a soft prompt drops its tree.
        self._trees.setdefault((key, attention), tree).put(ids, text)
        self._use(text, self._texts)
        self.bytes += size
        self._text_bytes += size
        self._shrink()

    def _use(self, entry: CachedPrefix[T], among: OrderedDict[CachedPrefix[T], None]) -> None:
        self._uses += 1
        entry.last_use = self._uses
        among[entry] = None
        among.move_to_end(entry)

    def _shrink(self) -> None:
        while self._text_bytes > self.budget // 2:
            self._evict(next(iter(self._texts)))
        while self.bytes > self.budget and (self._idle or self._texts):
            oldest = [next(iter(entries)) for entries in (self._idle, self._texts) if entries]
            self._evict(min(oldest, key=lambda entry: entry.last_use))

    def _evict(self, entry: CachedPrefix[T]) -> None:
        if entry.ids:
            self.text_evictions += 1
        else:
            self.evictions += 1
        self._drop(entry)

    def _drop(self, entry: CachedPrefix[T]) -> None:
        self.bytes -= entry.bytes
        if not entry.ids:
            del self._idle[entry], self._prompts[entry.key]
            return
        del self._texts[entry]
        self._text_bytes -= entry.bytes
        among = entry.key, entry.attention
        tree = self._trees[among]
        tree.remove(entry.ids)
        if not tree:
            del self._trees[among]
