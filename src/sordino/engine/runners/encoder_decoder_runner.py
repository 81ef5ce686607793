"""Rows on a transformers encoder-decoder, under the engine.

A request's ids are the input. They are gathered as the scheduler hands them out. When the last one has come, prompt and input run
through the encoder, once, and the decoder begins: its cross-attention keys and values are computed then, once. What the engine
draws is the decoder's text.

transformers' decoders know one length of text for a whole batch, so rows decode together as long as they have written equally
much: a `_Cohort` is rows whose inputs were complete in the same step, with one cache. A row that leaves takes its part along.
A row that was preempted begins again: its input and what it has written are gathered, then encoded and decoded in one pass.

Shape key: B rows of a cohort, S positions of the encoder, N rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from sordino.engine.requests import CacheUse
from sordino.engine.runners.runner import Span, overflowing
from sordino.engine.runners.torch_runner import LOWER, UNLIMITED
from sordino.forward.encoder_decoder import Encoded, InputPrefixes, decode, encode
from sordino.forward.nll import head_of
from sordino.forward.placement import encode_prompts, prefix_length
from sordino.forward.prefix import layers_of
from sordino.models.base_model import BaseModel
from sordino.models.memory import memory_errors
from sordino.prompts.attention import Strengths
from sordino.prompts.encoder_decoders import refused
from sordino.prompts.prompt import Prompt
from sordino.prompts.soft_prompt import SoftPrompt

# Most positions of encoders in one pass, padding counted.
_ENCODED_AT_ONCE = 4096
# Positions of output that a row is given room for at a time.
_RESERVED = 256


@dataclass(eq=False)
class _Cohort:
    """Rows that have written equally much. numbers: in the order of the cache."""

    numbers: list[int]
    encoded: Encoded
    cache: EncoderDecoderCache

    def part(self, numbers: Sequence[int]) -> _Cohort:
        """Some of its rows, with a cache of their own."""
        at = [self.numbers.index(number) for number in numbers]
        index = torch.tensor(at, device=self.encoded.seen_BS.device)
        own, cross = (
            _selected(one, index) for one in (self.cache.self_attention_cache, self.cache.cross_attention_cache)
        )
        return _Cohort(list(numbers), self.encoded.select(at), EncoderDecoderCache(own, cross))


@dataclass(eq=False)
class _EncoderRow:
    """prompt: ahead of the input. length: of the input. written: positions of the output so far. reserved: positions of the output
    that it has room for. ids: those that have arrived, of the input and, where the row begins again, of the output. cohort: once
    the decoder has begun.
    """

    prompt: Prompt | None
    length: int
    written: int
    reserved: int
    ids: list[int] = field(default_factory=list)
    cohort: _Cohort | None = None


class EncoderDecoderRunner:
    """kv_bytes: for running rows. advice: what to do when memory runs out."""

    name = "PyTorch"
    kinds = frozenset((SoftPrompt.kind,))
    hold = False
    strengths: Strengths = "one"

    def __init__(self, base: BaseModel, *, kv_bytes: int = UNLIMITED, advice: str = LOWER) -> None:
        self.model, self._advice, self._kv_bytes = base, advice, kv_bytes
        sides = base.encoder_decoder
        assert sides is not None
        self._sides = sides
        self._head = head_of(base.network)
        self._rows: dict[int, _EncoderRow] = {}
        # Without a limit nothing is measured.
        self._read_bytes, self._written_bytes = (1, 1) if kv_bytes == UNLIMITED else _position_bytes(base)

    @property
    def most_positions(self) -> int:
        return self._kv_bytes // max(self._read_bytes, self._written_bytes)

    def holds(self, rows: Sequence[tuple[Prompt | None, int]]) -> bool:
        return sum(length for _, length in rows) <= self.most_positions

    def hidden_of(self, ids: Sequence[int]) -> NDArray[np.floating[Any]]:
        raise refused("a mixture's gate", self.model.name)

    def prepare(self, prompts: Sequence[Prompt | None]) -> None:
        """Nothing runs ahead of a row's input."""

    def open(self, number: int, prompt: Prompt | None, ids: Sequence[int], written: int = 0) -> int | None:
        row = _EncoderRow(prompt, len(ids) - written, written, written + _RESERVED)
        if self._rows and not self._has_room(self._bytes_of(row)):
            return None
        if prompt is not None:
            self.model.check_fit(prompt, force=True)
        # Raises what is wrong with the prompt, of this row alone.
        encode_prompts(self.model, [prompt])
        self._rows[number] = row
        return 0

    def grow(self, number: int, count: int) -> bool:
        row = self._rows[number]
        if row.cohort is None:
            return True
        more = max(0, row.written + count - row.reserved)
        if more:
            # As far as there is room: a row that is alone may have less than it would be given.
            more = next((n for n in (max(more, _RESERVED), more) if self._has_room(n * self._written_bytes)), 0)
            if not more and len(self._rows) > 1:
                return False
        row.written, row.reserved = row.written + count, row.reserved + more
        return True

    @torch.inference_mode()
    def run(self, spans: Sequence[Span]) -> Tensor:
        hidden: dict[int, Tensor] = {}
        with memory_errors("writing", self._advice):
            complete, written = [], {}
            for span in spans:
                row = self._rows[span.number]
                if row.cohort is not None:
                    (written[span.number],) = span.ids
                    continue
                row.ids += span.ids
                if len(row.ids) == row.length + row.written:
                    complete.append(span.number)
            hidden |= self._encoded(complete)
            hidden |= self._decoded(written)
            wanted = [hidden[span.number] for span in spans if span.wanted]
            if not wanted:
                return torch.zeros(0, self._head.width)
            return self._head.logits_of_few(torch.cat(wanted)).float().cpu().contiguous()

    def close(self, number: int, ids: Sequence[int]) -> None:
        row = self._rows.pop(number)
        if row.cohort is not None:
            self._keep(row.cohort, [other for other in row.cohort.numbers if other != number])

    def cache_use(self) -> CacheUse:
        return CacheUse()

    def _bytes_of(self, row: _EncoderRow) -> int:
        read = prefix_length(self.model, row.prompt) + row.length + len(self._sides.end_ids)
        return read * self._read_bytes + row.reserved * self._written_bytes

    def _has_room(self, more: int) -> bool:
        """For so many more bytes."""
        return sum(map(self._bytes_of, self._rows.values())) + more <= self._kv_bytes

    def _encoded(self, numbers: Sequence[int]) -> dict[int, Tensor]:
        """Begin the decoders of rows whose inputs are complete: the hidden state [1, D] that predicts each next token."""
        lengths = {n: prefix_length(self.model, self._rows[n].prompt) + self._rows[n].length for n in numbers}
        written = {n: self._rows[n].written for n in numbers}
        waiting = sorted(numbers, key=lambda n: (written[n], -lengths[n], n))
        found: dict[int, Tensor] = {}
        while waiting:
            count = max(1, _ENCODED_AT_ONCE // max(1, lengths[waiting[0]] + len(self._sides.end_ids)))
            some = [n for n in waiting[:count] if written[n] == written[waiting[0]]]
            waiting = waiting[len(some) :]
            rows = [self._rows[number] for number in some]
            # A prompt of many rows is one prefix.
            prompts = list({id(row.prompt): row.prompt for row in rows}.values())
            prefixes = encode_prompts(self.model, prompts)
            assert isinstance(prefixes, InputPrefixes)
            at = [next(k for k, prompt in enumerate(prompts) if prompt is row.prompt) for row in rows]
            inputs = [torch.tensor([*row.ids[: row.length], *self._sides.end_ids], dtype=torch.long) for row in rows]
            encoded = encode(self.model.network, prefixes, at, inputs)
            cohort = _Cohort(list(some), encoded, EncoderDecoderCache(DynamicCache(), DynamicCache()))
            begun = [[*self._sides.start_ids, *row.ids[row.length :]] for row in rows]
            states_BTD = decode(
                self.model.network, encoded, torch.tensor(begun, device=self.model.device), cohort.cache
            )
            for row, number, state_TD in zip(rows, some, states_BTD, strict=True):
                # A value that is not finite would spread to every token.
                if not bool(torch.isfinite(state_TD).all()):
                    raise overflowing(row.prompt)
                row.cohort, found[number] = cohort, state_TD[-1:]
        return found

    def _decoded(self, written: dict[int, int]) -> dict[int, Tensor]:
        """Run one more token of each of some rows: the hidden states [1, D]."""
        found: dict[int, Tensor] = {}
        for cohort in {id(one): one for n in written if (one := self._rows[n].cohort) is not None}.values():
            going = [number for number in cohort.numbers if number in written]
            if len(going) < len(cohort.numbers):
                self._keep(cohort, [number for number in cohort.numbers if number not in written])
                cohort = self._keep(cohort, going)
            ids_B1 = torch.tensor([[written[number]] for number in going], device=self.model.device)
            states_B1D = decode(self.model.network, cohort.encoded, ids_B1, cohort.cache)
            found |= dict(zip(going, states_B1D, strict=True))
        return found

    def _keep(self, cohort: _Cohort, numbers: Sequence[int]) -> _Cohort:
        """Some rows of a cohort as one of their own."""
        own = cohort.part(numbers) if numbers else cohort
        for number in numbers:
            self._rows[number].cohort = own
        return own


@torch.inference_mode()
def _position_bytes(base: BaseModel) -> tuple[int, int]:
    """Of a position that is read, with its state, and of one that is written: found by running one of each."""
    token = base.embed(torch.zeros(1, dtype=torch.long, device=base.device))
    encoded = encode(base.network, InputPrefixes((token,)), [0], [torch.zeros(0, dtype=torch.long)])
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    decode(base.network, encoded, torch.zeros(1, 1, dtype=torch.long, device=base.device), cache)

    def size(own: DynamicCache) -> int:
        return sum(plane.nbytes for layer in layers_of(own) for plane in layer)

    return size(cache.cross_attention_cache) + encoded.states_BSD.nbytes, size(cache.self_attention_cache)


def _selected(cache: DynamicCache, index: Tensor) -> DynamicCache:
    own = DynamicCache()
    for at, (keys, values) in enumerate(layers_of(cache)):
        own.update(keys.index_select(0, index), values.index_select(0, index), at)
    return own
