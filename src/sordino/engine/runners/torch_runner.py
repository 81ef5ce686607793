"""Rows on a transformers decoder: the reference.

Llama's family on a CPU runs written out (`written_out`); the other families of the parity tests run transformers' modules, a shelf
at a time, on a cache that writes into the shelf; any other decoder runs its modules a row at a time, without masks of ours.

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

from sordino.engine.prefix_cache import WORTH_KEEPING, Kept, Key, PrefixCache
from sordino.engine.runners import fused_llama
from sordino.engine.runners.fused_llama import Alone, Llama, Together
from sordino.engine.runners.kv_pool import KeyValues, Place, Shape
from sordino.engine.runners.runner import CacheUse, Span, overflowing, text_alone
from sordino.engine.runners.shelf_cache import ShelfCache
from sordino.errors import ModelError, OutOfMemory
from sordino.forward.gate_input import hidden_of_text
from sordino.forward.nll import head_of
from sordino.forward.placement import prompt_embeds
from sordino.forward.prefix import Prefixes, encode_prefixes, is_written_out, layer_masks, packable
from sordino.models.base_model import BaseModel
from sordino.models.memory import memory_named
from sordino.prompts.soft_prompt import SoftPrompt

LOWER = "lower --rows, --kv-memory or --prefix-memory"
# Positions of soft prompts that are run side by side.
_ENCODED_AT_ONCE = 1024


@dataclass(frozen=True)
class _State:
    """Keys and values [L, 2, H, S, C] (None: there are none), and behind a soft prompt the last hidden state [D]."""

    front: Tensor | None
    last_D: Tensor | None = None

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.front, self.last_D) if t is not None)


@dataclass(frozen=True, eq=False)
class _Row:
    prefix: Kept[_State]
    width: int


class TorchRunner:
    """kv_bytes: for the rows that run. prefix_bytes: for prefixes and texts that were."""

    def __init__(self, base: BaseModel, *, kv_bytes: int, prefix_bytes: int) -> None:
        self.base = base
        self._head = head_of(base.network)
        self._llama = Llama.of(base.network) if is_written_out(base.network) else None
        self._rows: dict[int, _Row] = {}
        self._kept: PrefixCache[_State] = PrefixCache(prefix_bytes)
        # Run ahead of the rows that will want them.
        self._ahead: dict[Key, Kept[_State]] = {}
        # Not run ahead again: their rows say what is wrong.
        self._overflowing: set[Key] = set()
        self._key_values = KeyValues(_shape_of(base), kv_bytes)

    def prefix_length(self, prompt: SoftPrompt | None) -> int:
        if prompt is None:
            return len(self.base.bos_ids)
        return prompt.n_tokens + (len(self.base.bos_ids) if prompt.metadata.placement == "after_bos" else 0)

    @property
    def most_positions(self) -> int:
        return self._key_values.most_positions

    def holds(self, lengths: Sequence[int]) -> bool:
        return self._key_values.holds(lengths)

    @torch.inference_mode()
    def hidden_of(self, ids: Sequence[int]) -> NDArray[np.floating[Any]]:
        with memory_named("reading a text for a mixture's weights", LOWER):
            return hidden_of_text(self.base, text_alone(ids, self.base.bos_ids)).double().cpu().numpy()

    @torch.inference_mode()
    def prepare(self, prompts: Sequence[SoftPrompt | None]) -> None:
        wanted = {self._key(prompt): prompt for prompt in prompts if prompt is None or self.base.fit(prompt).forcible}
        for key in [key for key in self._ahead if key not in wanted]:
            self._kept.release(self._ahead.pop(key))
        asked = [p for key, p in wanted.items() if key not in self._overflowing and not self._kept.has(key)]
        missing = sorted(asked, key=self.prefix_length)
        while missing:
            # The last is the longest, to which the others are padded.
            count = max(1, _ENCODED_AT_ONCE // max(1, self.prefix_length(missing[-1])))
            missing, some = missing[:-count], missing[-count:]
            self._ahead |= {kept.key: kept for kept in self._encoded(some)}

    @torch.inference_mode()
    def open(self, number: int, prompt: SoftPrompt | None, ids: Sequence[int]) -> int | None:
        width = self.prefix_length(prompt)
        # Asked first: what waits for room is asked again at every step.
        if not self._key_values.fits(width + len(ids)):
            return None
        prefix = self._prefix(prompt)
        front, shared = prefix.state.front, 0
        # The last token is run in any case: its logits are wanted.
        if (found := self._kept.longest(prefix.key, ids[:-1])) is not None:
            kept, shared = found
            assert kept.state.front is not None
            front = kept.state.front[:, :, :, : width + shared]
        try:
            with memory_named("making room for a row", LOWER):
                self._key_values.open(number, front, width + len(ids))
        except OutOfMemory:
            self._kept.release(prefix)
            raise
        self._rows[number] = _Row(prefix, width)
        return shared

    @torch.inference_mode()
    def grow(self, number: int, count: int) -> bool:
        try:
            with memory_named("making room for a row", LOWER):
                return self._key_values.grow(number, self._key_values.places[number].length + count)
        except OutOfMemory:
            return False

    @torch.inference_mode()
    def run(self, spans: Sequence[Span]) -> Tensor:
        with memory_named("writing", LOWER):
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
        done = self._key_values.places[number].length - row.width
        size = self._key_values.places[number].length * self._key_values.shape.position_bytes
        if min(done, len(ids)) >= WORTH_KEEPING and self._kept.would_keep(size):
            # No memory for it: then it is not kept.
            with suppress(OutOfMemory), memory_named("keeping a text", LOWER):
                state = _State(self._key_values.take(number))
                self._kept.keep_text(row.prefix.key, ids[:done], state, state.bytes)
        self._key_values.close(number, spoiled=not ids)
        self._kept.release(row.prefix)

    def cache_use(self) -> CacheUse:
        kept = self._kept
        return CacheUse(kept.hits, kept.misses, kept.evictions, kept.text_hits, kept.text_evictions, kept.bytes)

    def _key(self, prompt: SoftPrompt | None) -> Key:
        if prompt is None:
            return self.base.fingerprint, "", ""
        return self.base.fingerprint, prompt.content_hash, prompt.metadata.placement

    def _prefix(self, prompt: SoftPrompt | None) -> Kept[_State]:
        """A soft prompt's keys and values, run once and kept: one user more."""
        if prompt is not None:
            self.base.check_fit(prompt, force=True)
        key = self._key(prompt)
        # What was run ahead has its first user already.
        if (ahead := self._ahead.pop(key, None)) is not None:
            return ahead
        kept = self._kept.prompt(key)
        if kept is None:
            kept = next(iter(self._encoded([prompt])), None)
        if kept is None:
            raise overflowing(prompt)
        return kept

    def _encoded(self, prompts: Sequence[SoftPrompt | None]) -> list[Kept[_State]]:
        """Run soft prompts, side by side, and keep them, one user each; those left out that overflow here. Raises OutOfMemory."""
        with memory_named("running a soft prompt", LOWER):
            prefixes = encode_prefixes(self.base.network, [prompt_embeds(self.base, prompt) for prompt in prompts])
            states = [_state_of(prefixes, number) for number in range(len(prompts))]
        kept = []
        for prompt, state in zip(prompts, states, strict=True):
            # What is no number here would be none in every row that comes near it.
            if state.front is not None and not bool(torch.isfinite(state.front).all()):
                self._overflowing.add(self._key(prompt))
            else:
                kept.append(self._kept.keep_prompt(self._key(prompt), state, state.bytes))
        return kept

    def _run(self, spans: Sequence[Span]) -> dict[int, Tensor]:
        """The hidden state [D] at each span's last position."""
        places = [self._key_values.places[span.number] for span in spans]
        if self._llama is not None:
            hidden = self._run_written_out(self._llama, spans, places)
        elif packable(self.base.network):
            hidden = self._run_modules(spans, places)
        else:
            hidden = {span.number: self._stretch(span, place) for span, place in zip(spans, places, strict=True)}
        for span, place in zip(spans, places, strict=True):
            place.length += len(span.ids)
        return hidden

    def _run_written_out(self, llama: Llama, spans: Sequence[Span], places: Sequence[Place]) -> dict[int, Tensor]:
        # Side by side: rows that take one position, by shelf and place on it, then rows that read a stretch.
        order = sorted(range(len(spans)), key=lambda i: (len(spans[i].ids) > 1, places[i].shelf.room, places[i].index))
        together: list[Together] = []
        alone: list[Alone] = []
        start = 0
        for taken, group in groupby(order, key=lambda i: (len(spans[i].ids) > 1, places[i].shelf.room)):
            members = list(group)
            if taken[0]:
                for i in members:
                    alone.append(Alone(places[i], slice(start, start + len(spans[i].ids)), places[i].length))
                    start += len(spans[i].ids)
            else:
                together.append(Together.of(start, [places[i] for i in members], llama.groups))
                start += len(members)
        ids: list[int] = []
        positions: list[int] = []
        ends: dict[int, int] = {}
        for i in order:
            ids += spans[i].ids
            positions += range(places[i].length, places[i].length + len(spans[i].ids))
            ends[spans[i].number] = len(ids) - 1
        embeds_ND = self.base.embed(torch.tensor(ids))
        hidden_ND = fused_llama.run(llama, embeds_ND, torch.tensor(positions), together, alone)
        return {number: hidden_ND[end] for number, end in ends.items()}

    def _run_modules(self, spans: Sequence[Span], places: Sequence[Place]) -> dict[int, Tensor]:
        hidden: dict[int, Tensor] = {}
        writers: dict[int, list[tuple[Span, Place]]] = {}
        for span, place in zip(spans, places, strict=True):
            if len(span.ids) == 1:
                writers.setdefault(place.shelf.room, []).append((span, place))
            else:
                hidden[span.number] = self._stretch(span, place)
        for rows in writers.values():
            hidden |= self._together(rows)
        return hidden

    def _together(self, rows: Sequence[tuple[Span, Place]]) -> dict[int, Tensor]:
        """One position for each of some rows of a shelf, in one pass over the whole shelf."""
        shelf, device = rows[0][1].shelf, self.base.device
        ids_B = torch.zeros(len(shelf.numbers), dtype=torch.long, device=device)
        position_B = torch.zeros_like(ids_B)
        for span, place in rows:
            ids_B[place.index], position_B[place.index] = span.ids[0], place.length
        key_S = torch.arange(max(place.length for _, place in rows) + 1, device=device)
        distance_B1S = (position_B[:, None] - key_S[None, :])[:, None, :]
        masks = layer_masks(self.base.network, distance_B1S >= 0, distance_B1S)
        cache = ShelfCache(shelf, [place for _, place in rows], alone=False)
        hidden_BTD = _forward(self.base, cache, ids_B[:, None], position_B[:, None], masks)
        return {span.number: hidden_BTD[place.index, 0] for span, place in rows}

    def _stretch(self, span: Span, place: Place) -> Tensor:
        """The hidden state at the last position of a stretch of one row."""
        device, network = self.base.device, self.base.network
        end = place.length + len(span.ids)
        ids_1T = torch.tensor([list(span.ids)], device=device)
        positions_1T = torch.arange(place.length, end, device=device)[None]
        distance_1TS = positions_1T[:, :, None] - torch.arange(end, device=device)
        # A decoder that is in no parity test makes its own masks: all that stands in front is seen.
        masks = (
            layer_masks(network, distance_1TS >= 0, distance_1TS)
            if packable(network)
            else torch.ones(1, end, dtype=torch.long, device=device)
        )
        return _forward(self.base, ShelfCache(place.shelf, [place], alone=True), ids_1T, positions_1T, masks)[0, -1]


def _forward(base: BaseModel, cache: ShelfCache, ids_BT: Tensor, positions_BT: Tensor, masks: Any) -> Tensor:
    embeds_BTD = base.network.get_input_embeddings()(ids_BT)
    hidden_BTD: Tensor = base.network.base_model(
        inputs_embeds=embeds_BTD, position_ids=positions_BT, attention_mask=masks, past_key_values=cache, use_cache=True
    ).last_hidden_state
    if cache.written != ids_BT.shape[1]:
        raise RuntimeError(f"{base.family}: the model did not use the cache it was given")
    return hidden_BTD


def _state_of(prefixes: Prefixes, number: int) -> _State:
    """Of one of several prefixes, without what pads it."""
    length = prefixes.lengths[number]
    if length == 0:
        return _State(None)
    front_L2HPC = torch.stack(
        [
            torch.stack((keys[number, :, -length:], values[number, :, -length:]))
            for keys, values in zip(prefixes.keys_KHPC, prefixes.values_KHPC, strict=True)
        ]
    )
    return _State(front_L2HPC, prefixes.last_KD[number].clone())


@torch.inference_mode()
def _shape_of(base: BaseModel) -> Shape:
    """What a position takes, seen at the first word of the vocabulary: configurations name it in many ways."""
    embeds_1D = base.embed(torch.zeros(1, dtype=torch.long, device=base.device))
    prefixes = encode_prefixes(base.network, [embeds_1D])
    shapes = {tuple(t.shape) for t in (*prefixes.keys_KHPC, *prefixes.values_KHPC)}
    if len(shapes) > 1:
        raise ModelError("layers that keep keys and values of different sizes are not served", where=base.family)
    (_, heads, _, channels), layers = shapes.pop(), len(prefixes.keys_KHPC)
    return Shape(layers, heads, channels, prefixes.keys_KHPC[0].dtype, base.device)
