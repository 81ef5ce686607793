"""A second backend: no threads, no engine, no keys and values. A request is run whole by its definition when it is asked for.

It runs embedding prompts only, and tells no log probabilities: what it lacks must be refused by name.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

import torch

from sordino.engine.backend import Capabilities, check_supported
from sordino.engine.detokenizer import Detokenizer
from sordino.engine.requests import CacheUse, Chunk, End, Event, Request, check_room, widths
from sordino.engine.sampling import sample
from sordino.engine.seen_tokens import SeenTokens
from sordino.errors import EngineBusy, SordinoError
from sordino.forward.placement import prefix_length
from sordino.models.base_model import BaseModel
from sordino.models.description import DescribedModel
from sordino.prompts.soft_prompt import SoftPrompt
from tests.engine.plain_model import logits_of


class ToyBackend:
    name = "toy"
    capabilities = Capabilities(
        frozenset(("embedding prompt",)),
        log_probabilities=False,
        scoring=False,
        strengths="one",
        hold=False,
        branches=1,
        grammars=False,
    )
    network: BaseModel | None = None
    dead: BaseException | None = None

    def __init__(self, model: DescribedModel, *, most: int = 8) -> None:
        self.model, self._most = model, most
        self.context_length = model.context_length
        self._running = 0
        self._stopped = False

    def start(self) -> None:
        pass

    def stop(self, *, finish: bool, seconds: float | None = None) -> bool:
        self._stopped = True
        return not self._running

    def check(self, requests: Sequence[Request]) -> None:
        if self._stopped:
            raise EngineBusy("the server is stopping")
        if self._running + len(requests) > self._most:
            raise EngineBusy("the queue is full")
        check_supported(self.name, self.capabilities, requests)
        for request in requests:
            check_room(request, widths(request, self.model), self.context_length)

    async def stream(
        self,
        requests: Sequence[Request],
        *,
        whole: bool = False,
        first: Callable[[float], None] = lambda seconds: None,
    ) -> AsyncGenerator[tuple[int, Event]]:
        self.check(requests)
        began = time.monotonic()
        self._running += len(requests)
        left = len(requests)
        try:
            for index, request in enumerate(requests):
                for event in self._events(request):
                    if event is not None:
                        if began:
                            first(time.monotonic() - began)
                            began = 0.0
                        yield index, event
                    await asyncio.sleep(0)
                self._running, left = self._running - 1, left - 1
        finally:
            self._running -= left

    def counts(self) -> tuple[int, int]:
        return self._running, 0

    def cache_use(self) -> CacheUse:
        return CacheUse()

    def _events(self, request: Request) -> Iterator[Event]:
        sampling, prompt = request.sampling, request.prompt
        assert prompt is None or isinstance(prompt, SoftPrompt)
        n_prompt, n_new = prefix_length(self.model, prompt) + len(request.ids), 0
        seen = SeenTokens(request.ids, sampling.repetition_range)
        text = Detokenizer(self.model.decode, request.ids, sampling.stop)
        random = torch.Generator().manual_seed(request.seed)
        try:
            if prompt is not None:
                self.model.check_fit(prompt, force=True)
        except SordinoError as error:
            yield End("failed", n_prompt, 0, error)
            return
        while n_new < sampling.max_tokens:
            if self._stopped:
                yield End("aborted", n_prompt, n_new)
                return
            drawn = sample(logits_of(prompt, seen.ids, self.model.vocab_size), seen, sampling, random)
            if drawn.token in self.model.stop_ids:
                yield Chunk(text.finish(), ())
                yield End("stop", n_prompt, n_new)
                return
            seen.push(drawn.token)
            n_new += 1
            yield Chunk(text.push(drawn.token), (drawn,))
            if text.stopped:
                yield End("stop", n_prompt, n_new)
                return
        yield Chunk(text.finish(), ())
        yield End("length", n_prompt, n_new)
