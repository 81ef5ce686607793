"""A request as vLLM reads it, and what it draws as our events.

Shape key: T positions of the row (BOS, virtual tokens, text), P virtual tokens, D model width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sordino.engine.detokenizer import Detokenizer
from sordino.engine.requests import Chunk, End, Reason, Request, widths
from sordino.engine.sampling import Drawn
from sordino.errors import SordinoError
from sordino.forward.placement import prefix_length
from sordino.models.description import DescribedModel
from sordino.prompts.mixture import Mixture
from sordino.prompts.prompt import KeysValues, Prompt


def engine_input(model: DescribedModel, request: Request, dtype: torch.dtype) -> dict[str, Any]:
    """vLLM's input for a request: token ids, and where it has a soft prompt, vectors [T, D] and which positions have ids.

    Only the prompt's positions are vectors: vLLM embeds the text itself, with what the family does to embeddings. Its prefix cache
    has the ids, the vectors and the salt in its key, not which of the two a position takes (vLLM #56655), so no row of vectors
    that goes unused differs from zero, and the salt is the prompt's own. Raises DoesNotFit.
    """
    prompt = request.prompt
    assert not isinstance(prompt, Mixture), "check_supported refuses them"
    if prompt is None:
        return {"type": "token", "prompt_token_ids": [*model.bos_ids, *request.ids]}
    matrix_PD = prompt.prefix(model.ref)
    assert not isinstance(matrix_PD, KeysValues), "check_supported refuses them"
    before = prefix_length(model, prompt) - prompt.n_tokens
    bos, text = model.bos_ids[:before], request.ids
    virtual = slice(before, before + prompt.n_tokens)
    # A repetition penalty counts the ids at the prompt's positions, so they are an id of the row, which is counted in any case.
    ids = [*bos, *[(*text, *bos, model.vocab_size - 1)[0]] * prompt.n_tokens, *text]
    embeds_TD = torch.zeros(len(ids), model.d_model, dtype=dtype)
    embeds_TD[virtual] = torch.from_numpy(matrix_PD.astype(np.float32)).to(dtype)
    return {
        "type": "embeds",
        "prompt_embeds": embeds_TD,
        "prompt_token_ids": ids,
        "is_token_ids": [not before <= at < virtual.stop for at in range(len(ids))],
        "cache_salt": _salt(prompt, before),
    }


def _salt(prompt: Prompt, before: int) -> str:
    """A salt of the cache that no two prompts or places share: what is cached after one is never used for another."""
    return hashlib.sha256(f"{prompt.content_hash} {prompt.n_tokens} {before}".encode()).hexdigest()


@dataclass(frozen=True)
class Output:
    """What vLLM says of a row since the last time. logprobs: for each token, by id (logprob, rank). cached: positions of the row
    that were in its cache."""

    ids: tuple[int, ...]
    logprobs: tuple[Mapping[int, tuple[float, int]], ...] | None
    finish: str | None
    cached: int

    @staticmethod
    def of(given: Any) -> Output:
        """Of a vllm.RequestOutput of one continuation."""
        (one,) = given.outputs
        logprobs = one.logprobs and tuple(
            {int(token): (float(found.logprob), int(found.rank or 0)) for token, found in each.items()}
            for each in one.logprobs
        )
        return Output(tuple(one.token_ids), logprobs or None, one.finish_reason, given.num_cached_tokens or 0)


class Row:
    """One request's events, made of vLLM's outputs. end: its last event, once it is known."""

    def __init__(self, model: DescribedModel, request: Request) -> None:
        self._model, self._request = model, request
        self._text = Detokenizer(model.decode, request.ids, request.sampling.stop)
        (width,) = widths(request, model)
        self.width, self.n_prompt, self.n_new = width, width + len(request.ids), 0
        self.end: End | None = None

    def ended(self, reason: Reason, **more: Any) -> End:
        return End(reason, self.n_prompt, self.n_new, **more)

    def read(self, output: Output) -> Iterator[Chunk]:
        """The chunks of an output. Sets `end` at the last; what vLLM writes after a stop string is left out."""
        for at, token in enumerate(output.ids):
            drawn = self._drawn(token, output.logprobs[at] if output.logprobs else None)
            if token in self._model.stop_ids and self._request.sampling.end != "ignore":
                yield from self._rest()
                self.end = self.ended("stop", ended_by=drawn)
                return
            self.n_new += 1
            yield Chunk(self._text.push(token), (drawn,))
            if self._text.stopped:
                self.end = self.ended("stop")
                return
        if output.finish in ("stop", "length"):
            yield from self._rest()
            self.end = self.ended("stop" if self._text.stopped or output.finish == "stop" else "length")
        elif output.finish == "abort":
            self.end = self.ended("aborted")
        elif output.finish is not None:
            self.end = self.ended("failed", error=SordinoError("the request failed in vLLM", got=output.finish))

    def _rest(self) -> Iterator[Chunk]:
        if rest := self._text.finish():
            yield Chunk(rest, ())

    def _drawn(self, token: int, found: Mapping[int, tuple[float, int]] | None) -> Drawn:
        count = self._request.sampling.logprobs
        if found is None or count is None:
            return Drawn(token)
        likeliest = sorted(found, key=lambda other: (found[other][1], other))[:count]
        return Drawn(token, found[token][0], tuple((other, found[other][0]) for other in likeliest))
