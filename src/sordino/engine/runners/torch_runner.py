"""Rows on a transformers decoder: the reference.

Llama's family on a CPU runs our own layers (`fused_llama`), any other decoder runs transformers' modules (`transformers_layers`).

Shape key: N rows whose logits are wanted, L layers, K soft prompts, H key-value heads, P prefix positions, S positions, C channels,
D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sordino.engine.prefix_cache import WORTH_KEEPING, CachedPrefix, Key, PrefixCache, prefix_key
from sordino.engine.requests import CacheUse
from sordino.engine.runners import fused_llama, transformers_layers
from sordino.engine.runners.fused_llama import Llama
from sordino.engine.runners.kv_pool import KeyValues, Shape, SlotSpan, State
from sordino.engine.runners.runner import Span, overflowing
from sordino.errors import OutOfMemory
from sordino.forward.gate_input import hidden_of_text
from sordino.forward.llama_layers import runs
from sordino.forward.nll import head_of
from sordino.forward.placement import encode_for_decoder, prefix_length, span_in
from sordino.forward.prefix import Prefixes, check_spans, encode_prefixes, has_fused_layers, packable
from sordino.forward.weighting import PromptSpan
from sordino.models.base_model import BaseModel
from sordino.models.memory import memory_errors
from sordino.models.quantised import QuantisedLinear
from sordino.prompts.attention import PLAIN, Strengths
from sordino.prompts.kv_prompt import KVPrompt
from sordino.prompts.prompt import Prompt, attention_of
from sordino.prompts.soft_prompt import SoftPrompt

UNLIMITED = 1 << 62
LOWER = "lower --rows, --kv-memory or --prefix-memory"
# Most positions of soft prompts that are encoded in one batch.
_ENCODED_AT_ONCE = 1024


@dataclass(frozen=True)
class _PrefixState:
    """Keys and values (None: there are none), and for a soft prompt alone its last hidden state [D]."""

    planes: State | None
    last_D: Tensor | None = None

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in (*(self.planes or ()), self.last_D) if t is not None)


@dataclass(frozen=True, eq=False)
class _TorchRow:
    """width: positions of the prefix. prompt: as in `SlotSpan`."""

    prefix: CachedPrefix[_PrefixState]
    width: int
    prompt: PromptSpan | None


class TorchRunner:
    """kv_bytes: for running rows. prefix_bytes: for cached prefixes and texts. rows: how many will run at once, if known.
    advice: what to do when memory runs out."""

    name = "PyTorch"
    kinds = frozenset((SoftPrompt.kind, KVPrompt.kind))

    def __init__(
        self, base: BaseModel, *, kv_bytes: int = UNLIMITED, prefix_bytes: int = 0, rows: int = 1, advice: str = LOWER
    ) -> None:
        self.model, self._advice = base, advice
        self._head = head_of(base.network)
        self._llama = Llama.of(base.network) if _has_fused_steps(base) else None
        self._rows: dict[int, _TorchRow] = {}
        self._cache: PrefixCache[_PrefixState] = PrefixCache(prefix_bytes)
        # Encoded before their rows are opened.
        self._ahead: dict[Key, CachedPrefix[_PrefixState]] = {}
        # Not encoded ahead again: opening their rows raises the error.
        self._overflowing: set[Key] = set()
        self._key_values = KeyValues(_shape_of(base, self._llama), kv_bytes, first_slots=rows)

    @property
    def hold(self) -> bool:
        return packable(self.model.network)

    @property
    def strengths(self) -> Strengths:
        return "any" if self.hold else "one"

    @property
    def most_positions(self) -> int:
        return self._key_values.most_positions

    def holds(self, rows: Sequence[tuple[Prompt | None, int]]) -> bool:
        return self._key_values.holds([length for _, length in rows])

    @torch.inference_mode()
    def hidden_of(self, ids: Sequence[int]) -> NDArray[np.floating[Any]]:
        with memory_errors("reading a text for a mixture's weights", self._advice):
            return hidden_of_text(self.model, self.model.without_bos(ids)).double().cpu().numpy()

    @torch.inference_mode()
    def prepare(self, prompts: Sequence[Prompt | None]) -> None:
        wanted = {self._key(prompt): prompt for prompt in prompts if prompt is None or self.model.fit(prompt).forcible}
        for key in [key for key in self._ahead if key not in wanted]:
            self._cache.release(self._ahead.pop(key))
        new = [p for key, p in wanted.items() if key not in self._overflowing and not self._cache.has(key)]
        missing = sorted(new, key=lambda prompt: prefix_length(self.model, prompt))
        while missing:
            # The last is the longest, to which the others are padded.
            count = max(1, _ENCODED_AT_ONCE // max(1, prefix_length(self.model, missing[-1])))
            missing, batch = missing[:-count], missing[-count:]
            self._ahead |= {cached.key: cached for cached in self._encoded(batch)}

    @torch.inference_mode()
    def open(self, number: int, prompt: Prompt | None, ids: Sequence[int], written: int = 0) -> int | None:
        width = prefix_length(self.model, prompt)
        # First: a request that waits for room comes here at every step.
        if not self._key_values.fits(width + len(ids)):
            return None
        prefix, attention = self._prefix(prompt), attention_of(prompt)
        front, shared = prefix.state.planes, 0
        # The last token runs in any case: its logits are wanted.
        if (found := self._cache.longest(prefix.key, ids[:-1], attention=attention)) is not None:
            text, shared = found
            assert text.state.planes is not None
            front = tuple(plane[:, :, : width + shared] for plane in text.state.planes)
        try:
            with memory_errors("making room for a row", self._advice):
                self._key_values.open(number, front, width + len(ids))
        except OutOfMemory:
            self._cache.release(prefix)
            raise
        self._rows[number] = _TorchRow(prefix, width, span_in(self.model, prompt))
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
            hidden = self._hidden([span for span in spans if span.ids])
            for span in spans:
                # Without text the first token is predicted from the prefix.
                if not span.ids and (last_D := self._rows[span.number].prefix.state.last_D) is not None:
                    hidden[span.number] = last_D[None]
            wanted = [hidden[span.number][-span.wanted :] for span in spans if span.wanted]
            if not wanted:
                return torch.zeros(0, self._head.width)
            return self._head.logits_of_few(torch.cat(wanted)).float().cpu().contiguous()

    @torch.inference_mode()
    def close(self, number: int, ids: Sequence[int]) -> None:
        row = self._rows.pop(number)
        length = self._key_values.slots[number].length
        done = min(length - row.width, len(ids))
        size = length * self._key_values.shape.position_bytes
        if done >= WORTH_KEEPING and self._cache.would_keep(size):
            # Without memory for it, it is not cached.
            with suppress(OutOfMemory), memory_errors("keeping a text", self._advice):
                state = _PrefixState(self._key_values.take(number))
                attention = row.prompt.attention if row.prompt else PLAIN
                self._cache.keep_text(row.prefix.key, ids[:done], state, state.bytes, attention=attention)
        self._key_values.close(number, spoiled=not ids)
        self._cache.release(row.prefix)

    def cache_use(self) -> CacheUse:
        return self._cache.use()

    def _key(self, prompt: Prompt | None) -> Key:
        return prefix_key(self.model.fingerprint, prompt)

    def _prefix(self, prompt: Prompt | None) -> CachedPrefix[_PrefixState]:
        """A soft prompt's keys and values, from the cache or encoded now, with one user more."""
        if prompt is not None:
            self.model.check_fit(prompt, force=True)
            # Cached without hold, it is not encoded, which checks this too.
            check_spans(self.model.network, (span_in(self.model, prompt),))
        key = self._key(prompt)
        # One that was encoded ahead has its first user already.
        if (ahead := self._ahead.pop(key, None)) is not None:
            return ahead
        cached = self._cache.prompt(key) or next(iter(self._encoded([prompt])), None)
        if cached is None:
            raise overflowing(prompt)
        return cached

    def _encoded(self, prompts: Sequence[Prompt | None]) -> list[CachedPrefix[_PrefixState]]:
        """Encode soft prompts in one batch and cache them, one user each; those that overflow are left out. Raises OutOfMemory."""
        with memory_errors("running a soft prompt", self._advice):
            prefixes = encode_for_decoder(self.model, prompts)
            states = [self._state_of(prefixes, index) for index in range(len(prompts))]
        cached = []
        for prompt, state in zip(prompts, states, strict=True):
            # A value that is not finite would spread to every row that attends to it.
            if all(bool(torch.isfinite(plane).all()) for plane in state.planes or ()):
                cached.append(self._cache.keep_prompt(self._key(prompt), state, state.bytes))
            else:
                self._overflowing.add(self._key(prompt))
        return cached

    def _state_of(self, prefixes: Prefixes, index: int) -> _PrefixState:
        """One of several prefixes, without its padding."""
        length = prefixes.lengths[index]
        if length == 0:
            return _PrefixState(None)
        planes = [plane_KHPC[index, :, -length:] for plane_KHPC in prefixes.planes()]
        return _PrefixState(self._key_values.shape.state(planes), prefixes.last_KD[index].clone())

    def _hidden(self, spans: Sequence[Span]) -> dict[int, Tensor]:
        """Run the next ids of some rows: the hidden states [T, D] at these positions."""
        if not spans:
            return {}
        steps = [
            SlotSpan(self._key_values.slots[span.number], span.ids, self._rows[span.number].prompt) for span in spans
        ]
        if self._llama is not None:
            states = fused_llama.run(self._llama, self.model, steps)
        else:
            states = transformers_layers.run(self.model, steps)
        for step in steps:
            step.slot.length += len(step.ids)
        return {span.number: states_TD for span, states_TD in zip(spans, states, strict=True)}


def _has_fused_steps(base: BaseModel) -> bool:
    """Whether `fused_llama` runs this model: packed weights, or numbers of 4 bytes or more, for which `times` is written."""
    if base.quantise:
        return packable(base.network) and runs(base.network, QuantisedLinear)
    return has_fused_layers(base.network) and base.dtype.itemsize >= 4


@torch.inference_mode()
def _shape_of(base: BaseModel, llama: Llama | None) -> Shape:
    """The size of a position. Configurations name it in many ways, so transformers' modules run one token to find out."""
    if llama is not None:
        return Shape(llama.planes, base.dtype, base.device)
    token = base.embed(torch.zeros(1, dtype=torch.long, device=base.device))
    planes = encode_prefixes(base.network, [token]).planes()
    return Shape(tuple((plane.shape[1], plane.shape[3]) for plane in planes), planes[0].dtype, base.device)
