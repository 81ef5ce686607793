"""Rows on a transformers decoder: the reference.

Llama's family on a CPU runs our own layers (`written_out`); the other families of the parity tests run transformers' modules, a
pool of slots at a time, on a cache that writes into the slots; any other decoder runs its modules a row at a time, without masks of
ours.

Shape key: B rows, T text positions, S key positions, N positions of a step, L layers, H key-value heads, P prefix positions,
C channels, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sordino.engine.prefix_cache import WORTH_KEEPING, CachedPrefix, Key, PrefixCache
from sordino.engine.requests import CacheUse
from sordino.engine.runners import fused_llama
from sordino.engine.runners.fused_llama import DecodeRows, Llama, PrefillRow
from sordino.engine.runners.kv_pool import KeyValues, Shape, Slot, SlotCache, State
from sordino.engine.runners.runner import Span, overflowing, text_alone
from sordino.errors import OutOfMemory
from sordino.forward.gate_input import hidden_of_text
from sordino.forward.nll import head_of
from sordino.forward.placement import encode_prompts, prefix_length
from sordino.forward.prefix import Prefixes, encode_prefixes, has_fused_layers, layer_masks, packable
from sordino.models.base_model import BaseModel
from sordino.models.memory import memory_errors
from sordino.prompts.prompt import Prompt

UNLIMITED = 1 << 62
LOWER = "lower --rows, --kv-memory or --prefix-memory"
# Positions of soft prompts that are run side by side.
_ENCODED_AT_ONCE = 1024


@dataclass(frozen=True)
class _State:
    """Keys and values (None: there are none), and behind a soft prompt the last hidden state [D]."""

    front: State | None
    last_D: Tensor | None = None

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*(self.front or ()), self.last_D) if t is not None)


@dataclass(frozen=True, eq=False)
class _TorchRow:
    prefix: CachedPrefix[_State]
    width: int


class TorchRunner:
    """kv_bytes: for the rows that run. prefix_bytes: for prefixes and texts that were. rows: how many will come at
    once, if that is known. advice: what to do where memory runs out."""

    name = "PyTorch"

    def __init__(
        self, base: BaseModel, *, kv_bytes: int = UNLIMITED, prefix_bytes: int = 0, rows: int = 1, advice: str = LOWER
    ) -> None:
        self.base, self._advice = base, advice
        self._head = head_of(base.network)
        self._llama = Llama.of(base.network) if has_fused_layers(base.network) else None
        self._rows: dict[int, _TorchRow] = {}
        self._cache: PrefixCache[_State] = PrefixCache(prefix_bytes)
        # Run ahead of the rows that will want them.
        self._ahead: dict[Key, CachedPrefix[_State]] = {}
        # Not run ahead again: their rows say what is wrong.
        self._overflowing: set[Key] = set()
        self._key_values = KeyValues(_shape_of(base, self._llama), kv_bytes, first_slots=rows)

    def prefix_length(self, prompt: Prompt | None) -> int:
        return prefix_length(self.base, prompt)

    @property
    def most_positions(self) -> int:
        return self._key_values.most_positions

    def holds(self, lengths: Sequence[int]) -> bool:
        return self._key_values.holds(lengths)

    @torch.inference_mode()
    def hidden_of(self, ids: Sequence[int]) -> NDArray[np.floating[Any]]:
        with memory_errors("reading a text for a mixture's weights", self._advice):
            return hidden_of_text(self.base, text_alone(ids, self.base.bos_ids)).double().cpu().numpy()

    @torch.inference_mode()
    def prepare(self, prompts: Sequence[Prompt | None]) -> None:
        wanted = {self._key(prompt): prompt for prompt in prompts if prompt is None or self.base.fit(prompt).forcible}
        for key in [key for key in self._ahead if key not in wanted]:
            self._cache.release(self._ahead.pop(key))
        asked = [p for key, p in wanted.items() if key not in self._overflowing and not self._cache.has(key)]
        missing = sorted(asked, key=self.prefix_length)
        while missing:
            # The last is the longest, to which the others are padded.
            count = max(1, _ENCODED_AT_ONCE // max(1, self.prefix_length(missing[-1])))
            missing, some = missing[:-count], missing[-count:]
            self._ahead |= {kept.key: kept for kept in self._encoded(some)}

    @torch.inference_mode()
    def open(self, number: int, prompt: Prompt | None, ids: Sequence[int]) -> int | None:
        width = self.prefix_length(prompt)
        # Asked first: what waits for room is asked again at every step.
        if not self._key_values.fits(width + len(ids)):
            return None
        prefix = self._prefix(prompt)
        front, shared = prefix.state.front, 0
        # The last token is run in any case: its logits are wanted.
        if (found := self._cache.longest(prefix.key, ids[:-1])) is not None:
            kept, shared = found
            assert kept.state.front is not None
            front = tuple(held[:, :, : width + shared] for held in kept.state.front)
        try:
            with memory_errors("making room for a row", self._advice):
                self._key_values.open(number, front, width + len(ids))
        except OutOfMemory:
            self._cache.release(prefix)
            raise
        self._rows[number] = _TorchRow(prefix, width)
        return shared

    @torch.inference_mode()
    def grow(self, number: int, count: int) -> bool:
        try:
            with memory_errors("making room for a row", self._advice):
                return self._key_values.grow(number, self._key_values.slots[number].length + count)
        except OutOfMemory:
            return False

    @torch.inference_mode()
    def run(self, spans: Sequence[Span]) -> Tensor:
        with memory_errors("writing", self._advice):
            filled = [span for span in spans if span.ids]
            hidden: dict[int, Tensor] = {
                span.number: last_D
                for span in spans
                if not span.ids and (last_D := self._rows[span.number].prefix.state.last_D) is not None
            }
            if filled:
                hidden |= self._run(filled)
            wanted = [hidden[span.number] for span in spans if span.wanted]
            if not wanted:
                return torch.zeros(0, self._head.width)
            return self._head.logits_of_few(torch.stack(wanted)).float().cpu().contiguous()

    @torch.inference_mode()
    def close(self, number: int, ids: Sequence[int]) -> None:
        row = self._rows.pop(number)
        done = self._key_values.slots[number].length - row.width
        size = self._key_values.slots[number].length * self._key_values.shape.position_bytes
        if min(done, len(ids)) >= WORTH_KEEPING and self._cache.would_keep(size):
            # No memory for it: then it is not kept.
            with suppress(OutOfMemory), memory_errors("keeping a text", self._advice):
                state = _State(self._key_values.take(number))
                self._cache.keep_text(row.prefix.key, ids[:done], state, state.bytes)
        self._key_values.close(number, spoiled=not ids)
        self._cache.release(row.prefix)

    def cache_use(self) -> CacheUse:
        cache = self._cache
        return CacheUse(cache.hits, cache.misses, cache.evictions, cache.text_hits, cache.text_evictions, cache.bytes)

    def _key(self, prompt: Prompt | None) -> Key:
        if prompt is None:
            return self.base.fingerprint, "", ""
        return self.base.fingerprint, prompt.content_hash, prompt.metadata.placement

    def _prefix(self, prompt: Prompt | None) -> CachedPrefix[_State]:
        """A soft prompt's keys and values, run once and kept: one user more."""
        if prompt is not None:
            self.base.check_fit(prompt, force=True)
        key = self._key(prompt)
        # What was run ahead has its first user already.
        if (ahead := self._ahead.pop(key, None)) is not None:
            return ahead
        kept = self._cache.prompt(key)
        if kept is None:
            kept = next(iter(self._encoded([prompt])), None)
        if kept is None:
            raise overflowing(prompt)
        return kept

    def _encoded(self, prompts: Sequence[Prompt | None]) -> list[CachedPrefix[_State]]:
        """Run soft prompts, side by side, and keep them, one user each; those left out that overflow here. Raises OutOfMemory."""
        with memory_errors("running a soft prompt", self._advice):
            prefixes = encode_prompts(self.base, prompts)
            states = [self._state_of(prefixes, number) for number in range(len(prompts))]
        kept = []
        for prompt, state in zip(prompts, states, strict=True):
            # What is no number here would be none in every row that comes near it.
            if state.front is not None and not all(bool(torch.isfinite(held).all()) for held in state.front):
                self._overflowing.add(self._key(prompt))
            else:
                kept.append(self._cache.keep_prompt(self._key(prompt), state, state.bytes))
        return kept

    def _state_of(self, prefixes: Prefixes, number: int) -> _State:
        """Of one of several prefixes, without what pads it."""
        length = prefixes.lengths[number]
        if length == 0:
            return _State(None)
        planes = [plane_KHPC[number, :, -length:] for plane_KHPC in _planes_of(prefixes)]
        return _State(self._key_values.shape.state(planes), prefixes.last_KD[number].clone())

    def _run(self, spans: Sequence[Span]) -> dict[int, Tensor]:
        """The hidden state [D] at each span's last position."""
        slots = [self._key_values.slots[span.number] for span in spans]
        if self._llama is not None:
            hidden = self._run_fused(self._llama, spans, slots)
        elif packable(self.base.network):
            hidden = self._run_modules(spans, slots)
        else:
            hidden = {span.number: self._prefill_row(span, slot) for span, slot in zip(spans, slots, strict=True)}
        for span, slot in zip(spans, slots, strict=True):
            slot.length += len(span.ids)
        return hidden

    def _run_fused(self, llama: Llama, spans: Sequence[Span], slots: Sequence[Slot]) -> dict[int, Tensor]:
        # Side by side: rows that decode, by pool and slot, then rows that prefill.
        order = sorted(range(len(spans)), key=lambda i: (len(spans[i].ids) > 1, slots[i].pool.capacity, slots[i].index))
        decoding: list[DecodeRows] = []
        prefilling: list[PrefillRow] = []
        start = 0
        for taken, group in groupby(order, key=lambda i: (len(spans[i].ids) > 1, slots[i].pool.capacity)):
            members = list(group)
            if taken[0]:
                for i in members:
                    prefilling.append(PrefillRow(slots[i], slice(start, start + len(spans[i].ids)), slots[i].length))
                    start += len(spans[i].ids)
            else:
                decoding.append(DecodeRows.of(start, [slots[i] for i in members], llama.groups))
                start += len(members)
        ids: list[int] = []
        positions: list[int] = []
        ends: dict[int, int] = {}
        for i in order:
            ids += spans[i].ids
            positions += range(slots[i].length, slots[i].length + len(spans[i].ids))
            ends[spans[i].number] = len(ids) - 1
        embeds_ND = self.base.embed(torch.tensor(ids))
        hidden_ND = fused_llama.run(llama, embeds_ND, torch.tensor(positions), decoding, prefilling)
        return {number: hidden_ND[end] for number, end in ends.items()}

    def _run_modules(self, spans: Sequence[Span], slots: Sequence[Slot]) -> dict[int, Tensor]:
        hidden: dict[int, Tensor] = {}
        writers: dict[int, list[tuple[Span, Slot]]] = {}
        for span, slot in zip(spans, slots, strict=True):
            if len(span.ids) == 1:
                writers.setdefault(slot.pool.capacity, []).append((span, slot))
            else:
                hidden[span.number] = self._prefill_row(span, slot)
        for rows in writers.values():
            hidden |= self._decode_rows(rows)
        return hidden

    def _decode_rows(self, rows: Sequence[tuple[Span, Slot]]) -> dict[int, Tensor]:
        """One position for each of some rows of a pool, in one pass over all its slots."""
        pool, device = rows[0][1].pool, self.base.device
        ids_B = torch.zeros(len(pool.numbers), dtype=torch.long, device=device)
        position_B = torch.zeros_like(ids_B)
        for span, slot in rows:
            ids_B[slot.index], position_B[slot.index] = span.ids[0], slot.length
        key_S = torch.arange(max(slot.length for _, slot in rows) + 1, device=device)
        distance_B1S = (position_B[:, None] - key_S[None, :])[:, None, :]
        masks = layer_masks(self.base.network, distance_B1S >= 0, distance_B1S)
        cache = SlotCache([slot for _, slot in rows], alone=False)
        hidden_BTD = _forward(self.base, cache, ids_B[:, None], position_B[:, None], masks)
        return {span.number: hidden_BTD[slot.index, 0] for span, slot in rows}

    def _prefill_row(self, span: Span, slot: Slot) -> Tensor:
        """The hidden state at the last of several positions of one row."""
        device, network = self.base.device, self.base.network
        end = slot.length + len(span.ids)
        ids_1T = torch.tensor([list(span.ids)], device=device)
        positions_1T = torch.arange(slot.length, end, device=device)[None]
        distance_1TS = positions_1T[:, :, None] - torch.arange(end, device=device)
        # A decoder that is in no parity test makes its own masks: all that stands in front is seen.
        masks = (
            layer_masks(network, distance_1TS >= 0, distance_1TS)
            if packable(network)
            else torch.ones(1, end, dtype=torch.long, device=device)
        )
        return _forward(self.base, SlotCache([slot], alone=True), ids_1T, positions_1T, masks)[0, -1]


def _forward(base: BaseModel, cache: SlotCache, ids_BT: Tensor, positions_BT: Tensor, masks: Any) -> Tensor:
    embeds_BTD = base.network.get_input_embeddings()(ids_BT)
    hidden_BTD: Tensor = base.network.base_model(
        inputs_embeds=embeds_BTD, position_ids=positions_BT, attention_mask=masks, past_key_values=cache, use_cache=True
    ).last_hidden_state
    if cache.written != ids_BT.shape[1]:
        raise RuntimeError(f"{base.family}: the model did not use the cache it was given")
    return hidden_BTD


def _planes_of(prefixes: Prefixes) -> list[Tensor]:
    """Keys and values [K, H, P, C], layer by layer."""
    return [plane for layer in zip(prefixes.keys_KHPC, prefixes.values_KHPC, strict=True) for plane in layer]


@torch.inference_mode()
def _shape_of(base: BaseModel, llama: Llama | None) -> Shape:
    """What a position takes. Unless the layers are ours it is seen at the first word of the vocabulary: configurations name it in
    many ways."""
    if llama is not None:
        return Shape(llama.planes, base.dtype, base.device)
    planes = _planes_of(
        encode_prefixes(base.network, [base.embed(torch.zeros(1, dtype=torch.long, device=base.device))])
    )
    return Shape(tuple((plane.shape[1], plane.shape[3]) for plane in planes), planes[0].dtype, base.device)
