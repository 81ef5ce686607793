"""A model that is a function of a row's own ids, and a runner over it that checks the engine's manners."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sordino.engine.requests import CacheUse, Request
from sordino.engine.runners.runner import Span
from sordino.engine.sampling import Sampling, sample
from sordino.engine.seen_tokens import SeenTokens
from sordino.errors import DoesNotFit, OutOfMemory
from sordino.forward.combining import responsible, sampling_logits
from sordino.forward.placement import prefix_length
from sordino.prompts.attention import Strengths
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import Metadata, SoftPrompt

STOP, V = 0, 30
# What the engine wants to know of a model.
MODEL: Any = SimpleNamespace(
    decode=lambda ids: "".join(chr(ord("a") + i) for i in ids),
    stop_ids=frozenset({STOP}),
    context_length=100,
    vocab_size=V,
    bos_ids=(1,),
    encoder_decoder=None,
)
TAME = Sampling(max_tokens=8, temperature=1.0, top_p=1.0)


def prompt(value: float, tokens: int = 2) -> SoftPrompt:
    return SoftPrompt(torch.full((tokens, 3), value).numpy(), Metadata(placement="start"))


def logits_of(soft: SoftPrompt | None, ids: Sequence[int], count: int = V) -> Tensor:
    """What the model would say: any function of the prompt and of all ids before, and of nothing else."""
    seed = hashlib.sha256(repr((soft.content_hash if soft else "", list(ids))).encode()).digest()
    return torch.randn(count, generator=torch.Generator().manual_seed(int.from_bytes(seed[:6], "big")))


def hidden_of(ids: Sequence[int]) -> NDArray[np.floating[Any]]:
    """What a gate reads: any function of the ids."""
    return np.array([len(ids), sum(ids), ids[-1] if ids else 0], dtype=np.float64) / 30


class Model:
    """A runner that checks the engine's manners: rows are opened once, run in order without gaps, and closed once."""

    name = "plain"
    hold = True
    strengths: Strengths = "any"
    kinds = frozenset((SoftPrompt.kind,))
    model = MODEL

    def __init__(self, room: int = 10**6, *, fails_on: int | None = None, remembers: bool = False) -> None:
        self.room, self.fails_on, self.remembers = room, fails_on, remembers
        self.rows: dict[int, tuple[SoftPrompt | None, list[int], int]] = {}
        self.texts: dict[str, list[int]] = {}

    @property
    def most_positions(self) -> int:
        return self.room

    def holds(self, rows: Sequence[tuple[Any, int]]) -> bool:
        return sum(length for _, length in rows) <= self.room

    def hidden_of(self, ids: Sequence[int]) -> NDArray[np.floating[Any]]:
        return hidden_of(ids)

    def free(self) -> int:
        return self.room - sum(room for _, _, room in self.rows.values())

    def prepare(self, prompts: Sequence[SoftPrompt | None]) -> None:
        pass

    def open(self, number: int, soft: SoftPrompt | None, ids: Sequence[int], written: int = 0) -> int | None:
        assert number not in self.rows
        if soft is not None and soft.d_model != 3:
            raise DoesNotFit("another width")
        need = prefix_length(self.model, soft) + len(ids)
        if need > self.free():
            return None
        known = self.texts.get(soft.content_hash if soft else "", []) if self.remembers else []
        shared = 0
        while shared < min(len(known), len(ids) - 1) and known[shared] == ids[shared]:
            shared += 1
        self.rows[number] = (soft, list(ids[:shared]), need)
        return shared

    def grow(self, number: int, count: int) -> bool:
        soft, ids, room = self.rows[number]
        more = max(0, prefix_length(self.model, soft) + len(ids) + count - room)
        if more > self.free():
            return False
        self.rows[number] = (soft, ids, room + more)
        return True

    def run(self, spans: Sequence[Span]) -> Tensor:
        logits = []
        for span in spans:
            soft, ids, room = self.rows[span.number]
            if self.fails_on in span.ids:
                raise OutOfMemory("memory ran out")
            ids += span.ids
            assert prefix_length(self.model, soft) + len(ids) <= room
            logits += [logits_of(soft, ids[:end]) for end in range(len(ids) - span.wanted + 1, len(ids) + 1)]
        return torch.stack(logits) if logits else torch.zeros(0, V)

    def close(self, number: int, ids: Sequence[int]) -> None:
        # Whatever number was never opened, or closed already, is a KeyError.
        soft, run, _ = self.rows.pop(number)
        if self.remembers and ids:
            assert list(ids[: len(run)]) == run
            self.texts[soft.content_hash if soft else ""] = run

    def cache_use(self) -> CacheUse:
        return CacheUse()


def alone(request: Request) -> tuple[str, str]:
    """What a request must say and how it must end, by the definition."""
    random = torch.Generator().manual_seed(request.seed)
    seen = SeenTokens(request.ids, request.sampling.repetition_range)
    ids, new = list(request.ids), []
    weights = None
    while len(new) < request.sampling.max_tokens:
        if isinstance(mixture := request.prompt, Mixture) and len(mixture.components) > 1:
            weights = first_weights(mixture, ids) if weights is None else weights
            skips = request.skips or (0,) * len(mixture.components)
            each = zip(mixture.components, skips, strict=True)
            each_KV = torch.stack([logits_of(soft, (ids + new)[skip:]) for soft, skip in each])
            logits, logp = sampling_logits(each_KV, weights, mixture.rule)
            logits = logits.clamp_min(-1e4)
        else:
            soft = mixture.components[0] if isinstance(mixture, Mixture) else mixture
            logits = logits_of(soft, ids + new)
        token = sample(logits, seen, request.sampling, random).token
        if weights is not None and mixture.rule == "sequence" and not request.token_mixture:  # type: ignore[union-attr]
            weights = responsible(weights, logp[:, token])
        if token == STOP:
            return MODEL.decode(new), "stop"
        new.append(token)
        seen.push(token)
        text = MODEL.decode(new)
        for stop in request.sampling.stop:
            if stop in text:
                return text[: text.index(stop)], "stop"
    return MODEL.decode(new), "length"


def first_weights(mixture: Mixture, ids: Sequence[int]) -> Tensor:
    weights = mixture.weights_for(hidden_of(ids))
    return torch.from_numpy(np.array(weights)).log()
