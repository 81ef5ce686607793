"""What goes into the engine and what comes out: requests and their events. Exactly one event of a request is an `End`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sordino.engine.sampling import Drawn, Sampling
from sordino.errors import ConfigError, SordinoError
from sordino.forward.placement import leading_ids
from sordino.models.context import check_context
from sordino.models.description import DescribedModel
from sordino.prompts.mixture import Mixture, components_of
from sordino.prompts.prompt import Prompt

Reason = Literal["stop", "length", "aborted", "failed"]


@dataclass(frozen=True)
class CacheUse:
    """Counts since the start. hits, misses, evictions: prefixes of soft prompts that were cached, had to run, were evicted.
    text_hits, text_evictions: the same for texts. bytes: size of the cache now.
    """

    hits: int
    misses: int
    evictions: int
    text_hits: int
    text_evictions: int
    bytes: int


@dataclass(frozen=True)
class Request:
    """Continue `ids` with a soft prompt, a mixture of them, or none.

    ids: the row's own text, with a BOS where it belongs after the prompt (`placement.leading_ids`). seed: of its random stream,
    which depends on nothing else. client: clients take turns when many requests wait; "" is a client too.
    For a mixture: skips, how many of the first `ids` each component leaves out because its prefix holds them (empty: none);
    token_mixture, whether its weights stay fixed while it writes.
    """

    ids: tuple[int, ...]
    prompt: Prompt | Mixture | None = None
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    client: str = ""
    skips: tuple[int, ...] = ()
    token_mixture: bool = False


def request_for(
    model: DescribedModel,
    text_ids: Sequence[int],
    prompt: Prompt | Mixture | None,
    sampling: Sampling,
    seed: int,
    *,
    client: str = "",
    token_mixture: bool = False,
) -> Request:
    """A request to continue a text. text_ids: without BOS."""
    # A mixture's components may differ in placement: the ids are those of the component that needs most of them.
    leading = [leading_ids(model, soft.metadata.placement if soft else None) for soft in components_of(prompt)]
    longest = max(leading, key=len)
    skips = tuple(len(longest) - len(ids) for ids in leading) if len(leading) > 1 else ()
    return Request((*longest, *text_ids), prompt, sampling, seed, client, skips, token_mixture)


def widths(request: Request, prefix_length: Callable[[Prompt | None], int]) -> list[int]:
    """For each component the positions ahead of the request's ids, less the ids that it skips."""
    prompts = components_of(request.prompt)
    skips = request.skips or (0,) * len(prompts)
    return [prefix_length(prompt) - skip for prompt, skip in zip(prompts, skips, strict=True)]


def check_room(
    request: Request,
    in_front: Sequence[int],
    context_length: int,
    *,
    where: str = "prompt",
    do: str = "shorten the text or ask for less",
) -> None:
    """Raise ConfigError where there is nothing to continue, or the continuation does not fit the model's context.

    in_front: the request's `widths`.
    """
    width, new = max(in_front), request.sampling.max_tokens
    if min(in_front) + len(request.ids) == 0:
        raise ConfigError("there is nothing to continue", where=where, do="give a text or a soft prompt")
    parts = {"in front": width, "text": len(request.ids), "new": new}
    check_context(parts, context_length, what="the text", where=where, do=do)


@dataclass(frozen=True)
class Chunk:
    """New text and its tokens. The text is empty while a character or a possible stop string is incomplete."""

    text: str
    drawn: tuple[Drawn, ...]


@dataclass(frozen=True)
class End:
    """The last event of a request. error: why it failed. n_prompt counts the soft prompt, BOS and text, n_new the drawn tokens."""

    reason: Reason
    n_prompt: int
    n_new: int
    error: SordinoError | None = None


Event = Chunk | End
