"""Rows on llama.cpp: what people with ordinary computers run.

A soft prompt goes in as vectors, once. Its state is kept as bytes, which are quickly restored into any row's sequence. In one pool
of cells, rows that run with the same soft prompt at the same time share its cells.

Where each sequence has its own cells, llama.cpp runs only sequences of consecutive numbers together. So rows take the numbers
0, 1, 2 ... without gaps: before a step the last rows move into the gaps that others left.

A row has the cells of a prompt that is held several times (`llama_copies`). The copies take up cells.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.engine.prefix_cache import WORTH_KEEPING, CachedPrefix, PrefixCache, prefix_key
from sordino.engine.requests import CacheUse
from sordino.engine.runners.llama_context import LlamaContext
from sordino.engine.runners.llama_copies import by_copies, cells_of
from sordino.engine.runners.llama_library import STRENGTHS
from sordino.engine.runners.llama_prompts import LlamaPrompts, no_first_token
from sordino.engine.runners.llama_state import SavedState, weighted, with_cells
from sordino.engine.runners.runner import Span
from sordino.errors import ModelError, OutOfMemory
from sordino.forward.placement import prefix_length
from sordino.forward.weighting import SINK
from sordino.models.description import DescribedModel
from sordino.models.memory import memory_errors
from sordino.prompts.kv_prompt import KVPrompt
from sordino.prompts.mixture import GATE_TOKENS
from sordino.prompts.prompt import Prompt, attention_of
from sordino.prompts.soft_prompt import SoftPrompt


@dataclass(eq=False)
class _LlamaRow:
    """sequence: llama.cpp's. width: of the prefix. room: cells reserved for it. length: positions that have run. copies: how often
    it has the cells of its prompt; 0 where that is unknown."""

    sequence: int
    prompt: Prompt | None
    prefix: CachedPrefix[SavedState]
    width: int
    room: int
    length: int
    copies: int = 1


class GgufRunner:
    """prefix_bytes: for cached prefixes and texts. It runs as many rows as the context has sequences."""

    name = "llama.cpp"
    hold, strengths = True, STRENGTHS
    kinds = frozenset((SoftPrompt.kind, KVPrompt.kind))

    def __init__(self, model: DescribedModel, context: LlamaContext, *, prefix_bytes: int) -> None:
        if (context.d_model, context.vocab_size) != (model.d_model, model.vocab_size):
            raise ModelError(
                "llama.cpp and transformers disagree about this file",
                where=model.name,
                expected=f"{model.d_model} wide, {model.vocab_size} tokens",
                got=f"{context.d_model} wide, {context.vocab_size} tokens",
            )
        self.model, self.context, self._prompts = model, context, LlamaPrompts(model, context)
        # A heap: the lowest is taken first.
        self._free = list(range(context.sequences))
        self._rows: dict[int, _LlamaRow] = {}
        self._cache: PrefixCache[SavedState] = PrefixCache(prefix_bytes)

    @property
    def most_positions(self) -> int:
        return self.context.cells

    def holds(self, rows: Sequence[tuple[Prompt | None, int]]) -> bool:
        cells = [cells_of(prompt, prefix_length(self.model, prompt), length) for prompt, length in rows]
        if self.context.split:
            return len(cells) <= self.context.sequences and max(cells) <= self.context.cells
        return sum(cells) <= self.context.cells

    def hidden_of(self, ids: Sequence[int]) -> NDArray[np.floating[Any]]:
        bos = self.model.bos_ids
        text = self.model.without_bos(ids)[-GATE_TOKENS:]
        if not text:
            return np.zeros(self.model.d_model)
        with memory_errors("reading a text for a mixture's weights", "lower --kv-memory or --rows"):
            hidden_ND = self.context.hidden([*bos, *text])
        mean_D: NDArray[np.floating[Any]] = hidden_ND[len(bos) :].mean(axis=0, dtype=np.float64)
        return mean_D

    def prepare(self, prompts: Sequence[Prompt | None]) -> None:
        """Nothing: encoding several soft prompts together is no faster here."""

    def open(self, number: int, prompt: Prompt | None, ids: Sequence[int], written: int = 0) -> int | None:
        if prompt is not None:
            self.model.check_fit(prompt, force=True)
            if not ids and isinstance(prompt, KVPrompt):
                raise no_first_token()
        width = prefix_length(self.model, prompt)
        room = cells_of(prompt, width, width + len(ids))
        if not self._free or not self._has_room(0, room):
            return None
        sequence = heapq.heappop(self._free)
        try:
            prefix, copies = self._prefix(prompt, sequence, width)
        except Exception:
            self._give_back(sequence)
            raise
        row = self._rows[number] = _LlamaRow(sequence, prompt, prefix, width, room, width, copies)
        try:
            return self._begin(row, ids)
        except Exception:
            self.close(number, ())
            raise

    def grow(self, number: int, count: int) -> bool:
        row = self._rows[number]
        room = max(row.room, cells_of(row.prompt, row.width, row.length + count))
        if not self._has_room(row.room, room):
            return False
        row.room = room
        return True

    def run(self, spans: Sequence[Span]) -> NDArray[np.float32]:
        self._fill_gaps()
        last: list[Span] = []
        before: list[tuple[int, NDArray[np.float32]]] = []
        for span in spans:
            row = self._rows[span.number]
            *early, (copies, end) = by_copies(span, row.prompt, row.length - row.width + 1)
            for fewer, piece in early:
                self._weigh(row, fewer)
                logits_WV = self._run([piece])
                before += [(len(last), logits_WV)] if piece.wanted else []
            self._weigh(row, copies)
            last.append(end)
        logits_WV = self._run(last)
        if not before:
            return logits_WV
        ends = np.cumsum([span.wanted for span in last])
        parts = [*before, *enumerate(np.split(logits_WV, ends[:-1]))]
        return np.concatenate([part_WV for _, part_WV in sorted(parts, key=lambda part: part[0])])

    def _weigh(self, row: _LlamaRow, copies: int) -> None:
        if row.copies == copies or row.width <= SINK:
            return
        choice = weighted(row.width, SINK, copies)
        self.context.restore(row.sequence, with_cells(self.context.saved(row.sequence), choice))
        row.copies = copies

    def _run(self, spans: Sequence[Span]) -> NDArray[np.float32]:
        filled = sorted((span for span in spans if span.ids), key=lambda span: self._rows[span.number].sequence)
        placed = [(self._rows[span.number], span, at) for span in filled for at in range(len(span.ids))]
        ids = [span.ids[at] for _, span, at in placed]
        positions = [row.length + at for row, _, at in placed]
        sequences = [row.sequence for row, _, _ in placed]
        wanted = [at >= len(span.ids) - span.wanted for _, span, at in placed]
        logits_WV = self.context.run_ids(ids, positions, sequences, wanted)
        for span in filled:
            self._rows[span.number].length += len(span.ids)
        ran, counts = [span.number for span in filled if span.wanted], [span.wanted for span in filled if span.wanted]
        if ran == [span.number for span in spans if span.wanted]:
            return logits_WV
        ends = [sum(counts[: at + 1]) for at in range(len(counts))]
        parts = [logits_WV[end - count : end] for end, count in zip(ends, counts, strict=True)]
        found = dict(zip(ran, parts, strict=True))
        return np.concatenate(
            [found[one.number] if one.ids else self._first(self._rows[one.number])[None] for one in spans if one.wanted]
        )

    def close(self, number: int, ids: Sequence[int]) -> None:
        row = self._rows.pop(number)
        done = row.length - row.width
        if min(done, len(ids)) >= WORTH_KEEPING and self._cache.would_keep(self.context.saved_bytes(row.sequence)):
            # Without memory for it, or where llama.cpp cannot save it, it is not cached.
            with suppress(OutOfMemory, ModelError), memory_errors("keeping a text", "lower --prefix-memory"):
                state = self.context.saved(row.sequence)
                attention = attention_of(row.prompt)
                self._cache.keep_text(row.prefix.key, ids[:done], state, state.nbytes, attention=attention)
        self._give_back(row.sequence)
        self._cache.release(row.prefix)

    def cache_use(self) -> CacheUse:
        return self._cache.use()

    def _has_room(self, reserved: int, wanted: int) -> bool:
        """Whether a row with `reserved` positions may have `wanted`."""
        if self.context.split:
            return wanted <= self.context.cells
        # Shared cells count for each row: a bound that holds whichever row ends first.
        total = sum(row.room for row in self._rows.values())
        return total - reserved + wanted <= self.context.cells

    def _give_back(self, sequence: int) -> None:
        self.context.cut(sequence, 0)
        heapq.heappush(self._free, sequence)

    def _fill_gaps(self) -> None:
        """Where sequences must be consecutive, move the last rows into the gaps. Before a step, not when a row ends: so rows that
        end together do not move, and a new row fills a gap at no cost."""
        while self.context.split and self._free and self._free[0] < len(self._rows):
            last = max(self._rows.values(), key=lambda row: row.sequence)
            if not self._moved(last, self._free[0]):
                return
            last.sequence = heapq.heapreplace(self._free, last.sequence)

    def _moved(self, row: _LlamaRow, sequence: int) -> bool:
        """Move a row to an empty sequence. False: it could not; the row stays, and the gap only costs speed."""
        try:
            with memory_errors("moving a row", "lower --rows or --kv-memory"):
                if row.length:
                    self.context.restore(sequence, self.context.saved(row.sequence))
        except (OutOfMemory, ModelError):
            self.context.cut(sequence, 0)
            return False
        self.context.cut(row.sequence, 0)
        return True

    def _begin(self, row: _LlamaRow, ids: Sequence[int]) -> int:
        """Restore a cached text into a row that holds its soft prompt: how many of `ids` it has."""
        # The last token runs in any case: its logits are wanted.
        attention = attention_of(row.prompt)
        found = self._cache.longest(
            row.prefix.key, ids[:-1], lambda text, shared: self._restorable(row, text, shared), attention=attention
        )
        if found is None:
            return 0
        text, shared = found
        self.context.restore(row.sequence, text.state)
        self.context.cut(row.sequence, row.width + shared)
        row.length = row.width + shared
        if not attention.plain:
            # As many as its end needed.
            row.copies = 0
        return shared

    def _prefix(self, prompt: Prompt | None, sequence: int, width: int) -> tuple[CachedPrefix[SavedState], int]:
        """Give a sequence its soft prompt: from a row that runs with it, from the cache, or by encoding it. One user more.

        Also returned: how many copies of its cells it got.
        """
        key = prefix_key(self.model.fingerprint, prompt)
        cached = self._cache.prompt(key)
        if cached is None:
            self._prompts.encode(prompt, sequence)
            state = self.context.saved(sequence) if width else np.empty(0, np.uint8)
            return self._cache.keep_prompt(key, state, state.nbytes), 1
        # Beyond a sliding window a row has lost cells of its prefix.
        within = self.context.window or self.context.cells
        rows = () if self.context.split else self._rows.values()
        other = next((row for row in rows if row.prefix is cached and row.length <= within), None)
        try:
            if other is not None:
                self.context.copy(other.sequence, sequence, width)
            elif width:
                self.context.restore(sequence, cached.state)
        except Exception:
            self._cache.release(cached)
            raise
        return cached, 1 if other is None else other.copies

    def _first(self, row: _LlamaRow) -> NDArray[np.float32]:
        """The logits [V] of a row without text."""
        self._weigh(row, 1)
        return self._prompts.logits_behind(row.prompt, row.sequence)

    def _restorable(self, row: _LlamaRow, text: CachedPrefix[SavedState], shared: int) -> bool:
        """Whether the beginning of a cached text can be restored: the whole must find cells for a moment, before it is cut.

        With a sliding window llama.cpp saves the window before the end of a text: before an earlier end, cells are missing.
        """
        whole, window = row.width + len(text.ids), self.context.window
        if not self._has_room(row.room, cells_of(row.prompt, row.width, whole)):
            return False
        return window == 0 or shared == len(text.ids) or whole <= window
