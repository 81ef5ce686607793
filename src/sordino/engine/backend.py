"""The program that runs requests: requests in, events out. The server and the page know this protocol and no implementation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sordino.engine.requests import CacheUse, Event, Request
from sordino.errors import ConfigError, EngineBusy
from sordino.models.base_model import BaseModel
from sordino.prompts.attention import UNSUPPORTED_STRENGTHS, Strengths, can_give
from sordino.prompts.mixture import Mixture, check_branches, components_of
from sordino.prompts.prompt import Prompt


@dataclass(frozen=True)
class Capabilities:
    """What a backend supports.

    kinds: of prompts (`Prompt.kind`), and "mixture". log_probabilities: of drawn tokens, and of the likeliest. scoring: those of a
    request's own text.
    strengths: that it can give a prompt. hold: keeping a prompt's attention as the text grows. branches: most of a mixture.
    grammars: of texts that match a schema.
    """

    kinds: frozenset[str]
    log_probabilities: bool
    scoring: bool
    strengths: Strengths
    hold: bool
    branches: int
    grammars: bool


class Backend(Protocol):
    """An implementer owes:

    - Every request that `stream` accepts ends in exactly one `End`: finished, aborted or failed. No event follows it.
    - `check` and `stream` refuse the same requests with the same errors: EngineBusy where the queue is full or the backend stops,
      ConfigError for what does not fit the context or is beyond `capabilities` (`check_supported`), DoesNotFit for a soft prompt of
      another width, OutOfMemory for what never fits. A request that was accepted and cannot run ends as failed, with its error.
    - A request's text depends on the request alone: not on its batch, not on what is cached. Equal seeds give equal text.
    - Text consists of whole characters, and never shows part of a stop string.
    - Closing `stream` early aborts its requests; their memory is free within a step.
    - `stream`, `check`, `counts` and `cache_use` may be called from any thread and event loop.
    - If the backend fails as a whole, `dead` is the error, every request gets its `End`, and no more are accepted.

    tests/engine/backend_conformance.py checks an implementation.
    """

    @property
    def name(self) -> str:
        """The program that computes, as people know it: "PyTorch", "llama.cpp"."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def context_length(self) -> int:
        """Most positions of a row that the model and the memory for rows allow."""

    @property
    def network(self) -> BaseModel | None:
        """The model, where it is in this process and can be inspected: its words, its attention."""

    @property
    def dead(self) -> BaseException | None:
        """The error after which no requests are accepted; None while they are."""

    def start(self) -> None:
        """Called once, before anything else."""

    def stop(self, *, finish: bool, seconds: float | None = None) -> bool:
        """Accept nothing more and end: now, or when the accepted requests are over. Returns whether it ended within `seconds`.

        May be called again, and with 0 seconds from a signal's handler.
        """

    def check(self, requests: Sequence[Request]) -> None:
        """Raise what `stream` would for these, all together, as far as is known now. For responses that start before events."""

    def stream(
        self,
        requests: Sequence[Request],
        *,
        whole: bool = False,
        first: Callable[[float], None] = lambda seconds: None,
    ) -> AsyncGenerator[tuple[int, Event]]:
        """The events of all requests as they come, each with its request's index; the last of each request is its `End`.

        whole: each request's events together once it has ended. first: called with the seconds until the first event.
        """

    def counts(self) -> tuple[int, int]:
        """(rows that run, requests that wait), as of now or a moment ago."""

    def cache_use(self) -> CacheUse:
        """Counts for metrics."""


def check_supported(name: str, capabilities: Capabilities, requests: Sequence[Request]) -> None:
    """Raise ConfigError that names what a backend does not support."""
    for request in requests:
        check_prompt(name, capabilities, request.prompt)
        if request.sampling.logprobs is not None and not capabilities.log_probabilities:
            raise _refusal(name, "log probabilities", "logprobs")
        if request.scoring is not None and not capabilities.scoring:
            raise _refusal(name, "log probabilities of a text that is read", "echo", do="leave echo out")
        if request.grammar is not None and not capabilities.grammars:
            raise _refusal(name, "JSON schemas", "response_format")


def check_open(dead: BaseException | None, *, stopping: bool) -> None:
    """Raise EngineBusy where a backend accepts nothing more."""
    if dead is not None:
        raise EngineBusy("the engine has stopped after an error")
    if stopping:
        raise EngineBusy("the server is stopping, or changing its model", do="try again in a moment")


def check_prompt(name: str, capabilities: Capabilities, prompt: Prompt | Mixture | None) -> None:
    """As `check_supported`, of a soft prompt alone."""
    for part in (prompt, *components_of(prompt)):
        if part is None:
            continue
        if part.kind not in capabilities.kinds:
            raise _refusal(name, f"{part.kind}s", "soft_prompt")
        attention = part.metadata.attention
        # A file may set it as well, so that a request without such a field is refused, with what to do.
        if attention.hold is not None and not capabilities.hold:
            raise _refusal(name, "hold", "hold", got=attention.hold, do="turn hold off (0)")
        if not can_give(capabilities.strengths, attention.strength):
            what, do = UNSUPPORTED_STRENGTHS[capabilities.strengths]
            raise _refusal(name, what, "strength", got=attention.strength, do=do)
    check_branches(prompt, capabilities.branches)


def _refusal(name: str, what: str, where: str, *, got: object = "", do: str = "") -> ConfigError:
    # PyTorch cannot do something only with an encoder-decoder, which no other runs.
    other = "" if name == "PyTorch" else "serve the model with another runner"
    return ConfigError(
        f"{name} does not support {what}", where=where, got=got, do=", or ".join(filter(None, (do, other)))
    )
