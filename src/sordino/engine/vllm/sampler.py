"""Our sampler inside vLLM, as one of its logits processors: for the requests whose settings vLLM lacks (`sampling.beyond`).

vLLM imports this module in the processes that run the model. All but the drawn token are taken out of a row's logits, so that the
row, which vLLM runs greedily, continues with it. Log probabilities are those before that.

Shape key: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from sordino.engine.samplers import TokenInfo
from sordino.engine.sampling import sample
from sordino.engine.seen_tokens import SeenTokens
from sordino.engine.vllm.sampling import KEY, unpacked
from sordino.errors import ModelError
from sordino.models.loading import read_tokenizer


class OwnSampler(AdapterLogitsProcessor):  # type: ignore[misc]
    """Every request with a `KEY` in its extra arguments; others are vLLM's."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self._folder = Path(vllm_config.model_config.tokenizer)

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> _Row | None:
        packed = (params.extra_args or {}).get(KEY)
        return None if packed is None else _Row(packed, self._text)

    @cached_property
    def _text(self) -> Callable[[int], str]:
        tokenizer = read_tokenizer(self._folder)

        @lru_cache(1 << 16)
        def text(token: int) -> str:
            return str(tokenizer.decode([token], skip_special_tokens=True, clean_up_tokenization_spaces=False))

        return text


class _Row:
    """One request. vLLM may call it for a place again, after the row was preempted or while its prompt is read in parts: so what
    is drawn depends on the place alone."""

    def __init__(self, packed: str, text: Callable[[int], str]) -> None:
        self._sampling, self._ids, self._seed, ends = unpacked(packed)
        self._vocabulary = TokenInfo(ends, text)
        self._seen = SeenTokens(self._ids, self._sampling.repetition_range)
        self._random = torch.Generator()
        # The place that the random stream has come to.
        self._place = -1

    def __call__(self, output_ids: Sequence[int], logits_V: Tensor) -> Tensor:
        place = len(output_ids)
        self._go_to(place)
        new = len(self._seen.ids) - len(self._ids)
        for token in output_ids[new:]:
            self._seen.push(token)
        try:
            drawn = sample(logits_V.float(), self._seen, self._sampling, self._random, self._vocabulary)
        except ModelError:
            # Logits that are not finite: an error would end every request of the process, so the row is as vLLM leaves it.
            return logits_V
        self._place = place + 1
        logits_V.fill_(-torch.inf)
        logits_V[drawn.token] = 0.0
        return logits_V

    def _go_to(self, place: int) -> None:
        if place == self._place:
            return
        self._random.manual_seed(self._seed)
        each = (1 + bool(self._sampling.xtc_probability)) if self._sampling.temperature else 0
        for _ in range(place * each):
            torch.rand((), generator=self._random, dtype=torch.float64)
