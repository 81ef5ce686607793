"""Where requests run, seen from outside: request in, events out. The server and the page know this and no implementation of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sordino.engine.requests import CacheUse, Chunk, End, Event, Request
from sordino.errors import ConfigError
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import check_branches, components_of


@dataclass(frozen=True)
class Capabilities:
    """What a backend runs.

    kinds: of prompts (`Prompt.kind`), and "mixture". log_probabilities: of drawn tokens, and of the likeliest. strength, hold:
    whether a prompt may be given more or less attention, and keep it as the text grows. branches: most components of a mixture.
    """

    kinds: frozenset[str]
    log_probabilities: bool
    strength: bool
    hold: bool
    branches: int


class Backend(Protocol):
    """An implementer owes:

    - Every request that `stream` took ends in exactly one `End`: finished, aborted or failed. No event follows it.
    - `check` and `stream` refuse the same requests with the same errors: EngineBusy where the queue is full or the backend stops,
      ConfigError for what does not fit the context or is beyond `capabilities` (`check_supported`), DoesNotFit for a soft prompt of
      another width, OutOfMemory for what can never be held. What `stream` took and cannot run ends as failed, with its error.
    - A request's text depends on the request alone: not on others in its batch, not on what is cached. Equal seeds give equal text.
    - Text is whole characters, and no part of a stop string is ever given out.
    - Whoever stops listening to `stream` ends its requests; their memory is free within a step.
    - `stream`, `check`, `counts` and `cache_use` may be called from any thread and event loop.
    - Where it fails as a whole, `dead` is the error, everybody gets an `End`, and nothing more is taken.

    tests/engine/backend_conformance.py holds an implementation to it.
    """

    @property
    def name(self) -> str:
        """Who computes, for people: "PyTorch", "llama.cpp"."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def context_length(self) -> int:
        """Positions of a row, as far as the model and the memory for rows go."""

    @property
    def network(self) -> BaseModel | None:
        """The model itself where it is in this process and can be looked into: its words, its attention."""

    @property
    def dead(self) -> BaseException | None:
        """Why it takes nothing any more; None while it does."""

    def start(self) -> None:
        """Called once, before anything else."""

    def stop(self, *, finish: bool, seconds: float | None = None) -> bool:
        """Take nothing more and end: at once, or when the requests that were taken are over. Whether it ended within `seconds`.

        May be called again, and with 0 seconds from a signal's handler.
        """

    def check(self, requests: Sequence[Request]) -> None:
        """Raise what would become of these, all together, as far as it is known now: for answers that begin before events."""

    def stream(
        self,
        requests: Sequence[Request],
        *,
        whole: bool = False,
        first: Callable[[float], None] = lambda seconds: None,
    ) -> AsyncGenerator[tuple[int, Event]]:
        """The events of all requests as they come, each with its request's place; an `End` is the last of each.

        whole: each request's events together when it has ended. first: is called with the seconds until the first event.
        """

    async def complete(self, request: Request) -> tuple[str, list[Chunk], End]:
        """The whole text, its chunks, and how it ended."""

    def counts(self) -> tuple[int, int]:
        """(rows that run, requests that wait), as of now or a moment ago."""

    def cache_use(self) -> CacheUse:
        """For metrics."""


def check_supported(name: str, capabilities: Capabilities, requests: Sequence[Request]) -> None:
    """Raise ConfigError for what a backend does not do, by name."""
    for request in requests:
        for prompt in (request.prompt, *components_of(request.prompt)):
            if prompt is not None and prompt.kind not in capabilities.kinds:
                raise _refusal(name, f"{prompt.kind}s", "soft_prompt")
        check_branches(request.prompt, capabilities.branches)
        if request.sampling.logprobs is not None and not capabilities.log_probabilities:
            raise _refusal(name, "log probabilities", "logprobs")


def _refusal(name: str, what: str, where: str) -> ConfigError:
    return ConfigError(f"{name} does not do {what}", where=where, do="serve the model with another runner")
