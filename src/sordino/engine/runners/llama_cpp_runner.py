"""Rows on llama.cpp: what people with ordinary computers run.

A soft prompt goes in as vectors, once; what it became is kept as bytes, which any row's sequence is given in a moment. In one pool
of cells rows that run behind the same soft prompt at the same time share its cells.

Where each sequence has its own cells, llama.cpp runs together only sequences that follow one another in number; so the rows' are
0, 1, 2 ... without a hole: before a step the last ones move into the holes that rows have left.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.engine.prefix_cache import WORTH_KEEPING, CachedPrefix, Key, PrefixCache
from sordino.engine.requests import CacheUse
from sordino.engine.runners.llama_context import LlamaContext
from sordino.engine.runners.runner import Span, overflowing, text_alone
from sordino.errors import ConfigError, ModelError, OutOfMemory
from sordino.forward.placement import prefix_length
from sordino.models.description import DescribedModel
from sordino.models.memory import memory_errors
from sordino.prompts.mixture import GATE_TOKENS
from sordino.prompts.prompt import KeysValues, Prompt, Vectors

# Norms square what they are given, in float32.
_LARGEST = 1e15

State = NDArray[np.uint8]


@dataclass(eq=False)
class _LlamaRow:
    """sequence: llama.cpp's. width: of the prefix. room: positions that are promised to it. length: positions that were run."""

    sequence: int
    prompt: Prompt | None
    prefix: CachedPrefix[State]
    width: int
    room: int
    length: int


class GgufRunner:
    """prefix_bytes: for prefixes and texts that were. Rows: as many as the context has sequences."""

    name = "llama.cpp"

    def __init__(self, model: DescribedModel, context: LlamaContext, *, prefix_bytes: int) -> None:
        if (context.d_model, context.vocab_size) != (model.d_model, model.vocab_size):
            raise ModelError(
                "llama.cpp reads this file otherwise than transformers does",
                where=model.name,
                expected=f"{model.d_model} wide, {model.vocab_size} words",
                got=f"{context.d_model} wide, {context.vocab_size} words",
            )
        self.model, self.context = model, context
        # A heap: the lowest is given out first.
        self._free = list(range(context.sequences))
        self._rows: dict[int, _LlamaRow] = {}
        self._cache: PrefixCache[State] = PrefixCache(prefix_bytes)

    def prefix_length(self, prompt: Prompt | None) -> int:
        return prefix_length(self.model, prompt)

    @property
    def most_positions(self) -> int:
        return self.context.cells

    def holds(self, lengths: Sequence[int]) -> bool:
        if self.context.split:
            return len(lengths) <= self.context.sequences and max(lengths) <= self.context.cells
        return sum(lengths) <= self.context.cells

    def hidden_of(self, ids: Sequence[int]) -> NDArray[np.floating[Any]]:
        bos = self.model.bos_ids
        text = text_alone(ids, bos)[-GATE_TOKENS:]
        if not text:
            return np.zeros(self.model.d_model)
        with memory_errors("reading a text for a mixture's weights", "lower --kv-memory or --rows"):
            hidden_ND = self.context.hidden([*bos, *text])
        mean_D: NDArray[np.floating[Any]] = hidden_ND[len(bos) :].mean(axis=0, dtype=np.float64)
        return mean_D

    def prepare(self, prompts: Sequence[Prompt | None]) -> None:
        """Nothing: a soft prompt alone keeps the processor as busy as several."""

    def open(self, number: int, prompt: Prompt | None, ids: Sequence[int]) -> int | None:
        if prompt is not None:
            self.model.check_fit(prompt, force=True)
        width = self.prefix_length(prompt)
        room = width + len(ids)
        if not self._free or not self._has_room(0, room):
            return None
        sequence = heapq.heappop(self._free)
        try:
            prefix = self._prefix(prompt, sequence, width)
        except Exception:
            self._give_back(sequence)
            raise
        row = self._rows[number] = _LlamaRow(sequence, prompt, prefix, width, room, width)
        try:
            return self._begin(row, ids)
        except Exception:
            self.close(number, ())
            raise

    def grow(self, number: int, count: int) -> bool:
        row = self._rows[number]
        room = max(row.room, row.length + count)
        if not self._has_room(row.room, room):
            return False
        row.room = room
        return True

    def run(self, spans: Sequence[Span]) -> NDArray[np.float32]:
        self._close_ranks()
        filled = sorted((span for span in spans if span.ids), key=lambda span: self._rows[span.number].sequence)
        ids: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        wanted: list[bool] = []
        for span in filled:
            row, count = self._rows[span.number], len(span.ids)
            ids += span.ids
            positions += range(row.length, row.length + count)
            sequences += [row.sequence] * count
            wanted += [*[False] * (count - 1), span.wanted]
        logits_WV = self.context.run_ids(ids, positions, sequences, wanted)
        for span in filled:
            self._rows[span.number].length += len(span.ids)
        ran = [span.number for span in filled if span.wanted]
        if ran == [span.number for span in spans if span.wanted]:
            return logits_WV
        found = dict(zip(ran, logits_WV, strict=True))
        return np.stack(
            [found[span.number] if span.ids else self._behind_prefix(span.number) for span in spans if span.wanted]
        )

    def close(self, number: int, ids: Sequence[int]) -> None:
        row = self._rows.pop(number)
        done = row.length - row.width
        if min(done, len(ids)) >= WORTH_KEEPING and self._cache.would_keep(self.context.saved_bytes(row.sequence)):
            # No memory for it, or llama.cpp cannot: then it is not kept.
            with suppress(OutOfMemory, ModelError), memory_errors("keeping a text", "lower --prefix-memory"):
                state = self.context.saved(row.sequence)
                self._cache.keep_text(row.prefix.key, ids[:done], state, state.nbytes)
        self._give_back(row.sequence)
        self._cache.release(row.prefix)

    def cache_use(self) -> CacheUse:
        cache = self._cache
        return CacheUse(cache.hits, cache.misses, cache.evictions, cache.text_hits, cache.text_evictions, cache.bytes)

    def _has_room(self, had: int, wanted: int) -> bool:
        """Whether a row that was promised `had` positions may have `wanted`."""
        if self.context.split:
            return wanted <= self.context.cells
        # Cells that are shared count for each: a bound that no order of endings breaks.
        promised = sum(row.room for row in self._rows.values())
        return promised - had + wanted <= self.context.cells

    def _give_back(self, sequence: int) -> None:
        self.context.cut(sequence, 0)
        heapq.heappush(self._free, sequence)

    def _close_ranks(self) -> None:
        """Where there may be no hole, the last rows move into those that others left. Before a step, not when a row leaves: of
        rows that leave together none moves, and a row that comes fills a hole for nothing."""
        while self.context.split and self._free and self._free[0] < len(self._rows):
            last = max(self._rows.values(), key=lambda row: row.sequence)
            if not self._moved(last, self._free[0]):
                return
            last.sequence = heapq.heapreplace(self._free, last.sequence)

    def _moved(self, row: _LlamaRow, sequence: int) -> bool:
        """Give an empty sequence what a row holds. False: it could not be; the row stays, and the hole costs only speed."""
        try:
            with memory_errors("moving a row", "lower --rows or --kv-memory"):
                if row.length:
                    self.context.restore(sequence, self.context.saved(row.sequence))
        except (OutOfMemory, ModelError):
            self.context.cut(sequence, 0)
            return False
        self.context.cut(row.sequence, 0)
        return True

    def _leading(self, prompt: Prompt | None) -> tuple[int, ...]:
        """The ids in front of the vectors."""
        return self.model.bos_ids[: self.prefix_length(prompt) - (prompt.n_tokens if prompt else 0)]

    def _begin(self, row: _LlamaRow, ids: Sequence[int]) -> int:
        """Take a kept text into a row that stands behind its soft prompt: how many of `ids` it has."""
        # The last token is run in any case: its logits are wanted.
        found = self._cache.longest(row.prefix.key, ids[:-1], lambda kept, shared: self._can_be_had(row, kept, shared))
        if found is None:
            return 0
        kept, shared = found
        self.context.restore(row.sequence, kept.state)
        self.context.cut(row.sequence, row.width + shared)
        row.length = row.width + shared
        return shared

    def _prefix(self, prompt: Prompt | None, sequence: int, width: int) -> CachedPrefix[State]:
        """Give a sequence its soft prompt: from a row that runs behind it, from what is kept, or by running it. One user more."""
        key: Key = (
            self.model.fingerprint,
            prompt.content_hash if prompt else "",
            prompt.metadata.placement if prompt else "",
        )
        kept = self._cache.prompt(key)
        if kept is None:
            self._encode(prompt, sequence)
            state = self.context.saved(sequence) if width else np.empty(0, np.uint8)
            return self._cache.keep_prompt(key, state, state.nbytes)
        # A row that has gone on beyond a sliding window has lost cells of its prefix there.
        within = self.context.window or self.context.cells
        rows = () if self.context.split else self._rows.values()
        other = next((row for row in rows if row.prefix is kept and row.length <= within), None)
        try:
            if other is not None:
                self.context.copy(other.sequence, sequence, width)
            elif width:
                self.context.restore(sequence, kept.state)
        except Exception:
            self._cache.release(kept)
            raise
        return kept

    def _vectors(self, prompt: Prompt) -> Vectors:
        content = prompt.prefix(self.model.ref)
        if isinstance(content, KeysValues):
            raise ConfigError(f"llama.cpp does not run {prompt.kind}s", where=prompt.metadata.name)
        return content

    def _encode(self, prompt: Prompt | None, sequence: int) -> None:
        # All rows look at one pool of cells, and what is no number there is none anywhere, masked or not: so before it is run.
        if prompt is not None and float(np.abs(self._vectors(prompt)).max()) > _LARGEST:
            raise overflowing(prompt)
        leading = self._leading(prompt)
        if leading:
            places = range(len(leading))
            self.context.run_ids(leading, places, [sequence] * len(leading), [False] * len(leading))
        if prompt is not None:
            places = range(len(leading), len(leading) + prompt.n_tokens)
            logits_1V = self.context.run_embeds(self._vectors(prompt), places, sequence, wanted=True)
            if not np.isfinite(logits_1V).all():
                raise overflowing(prompt)

    def _behind_prefix(self, number: int) -> NDArray[np.float32]:
        """The logits [V] of a row without text: its prefix's last position is run once more."""
        row = self._rows[number]
        last = row.width - 1
        self.context.cut(row.sequence, last)
        if row.prompt is None:
            logits_1V = self.context.run_ids([self._leading(None)[-1]], [last], [row.sequence], [True])
        else:
            logits_1V = self.context.run_embeds(self._vectors(row.prompt)[-1:], [last], row.sequence, wanted=True)
        return logits_1V.reshape(-1)

    def _can_be_had(self, row: _LlamaRow, kept: CachedPrefix[State], shared: int) -> bool:
        """Whether the beginning of a kept text can be restored: the whole must find cells for a moment, before it is cut.

        Of a model with a sliding window llama.cpp saves the window behind the end: before an earlier end, cells are missing.
        """
        whole, window = row.width + len(kept.ids), self.context.window
        if not self._has_room(row.room, whole):
            return False
        return window == 0 or shared == len(kept.ids) or whole <= window
