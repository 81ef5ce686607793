"""What goes into the engine and what comes out: requests and their events. Exactly one event of a request is an `End`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sordino.engine.config import MOST_LIKELIEST
from sordino.engine.grammar import Grammar
from sordino.engine.sampling import Drawn, Sampling
from sordino.errors import ConfigError, SordinoError
from sordino.forward.placement import leading_ids, prefix_length
from sordino.models.context import check_context
from sordino.models.description import DescribedModel
from sordino.models.model_facts import EncoderDecoder
from sordino.prompts.mixture import Mixture, components_of
from sordino.prompts.prompt import Prompt

Reason = Literal["stop", "length", "aborted", "failed"]


@dataclass(frozen=True)
class CacheUse:
    """Counts since the start. hits, misses, evictions: prefixes of soft prompts that were cached, had to run, were evicted.
    text_hits, text_evictions: the same for texts. bytes: size of the cache now.
    """

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    text_hits: int = 0
    text_evictions: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Scoring:
    """The log probabilities of a request's own text are reported, and of the `likeliest` tokens at each place in it.

    only: the text is not continued. first_token: the first one is scored too, where there is a prefix that predicts it.
    """

    likeliest: int
    only: bool = False
    first_token: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.likeliest <= MOST_LIKELIEST:
            raise ConfigError("too many", where="logprobs", expected=f"0 to {MOST_LIKELIEST}", got=self.likeliest)


@dataclass(frozen=True)
class Request:
    """Continue `ids` with a soft prompt, a mixture of them, or none.

    ids: the row's own text, with a BOS where it belongs after the prompt (`placement.leading_ids`). seed: of its random stream,
    which depends on nothing else. client: clients take turns when many requests wait; "" is a client too.
    For a mixture: skips, how many of the first `ids` each component leaves out because its prefix holds them (empty: none);
    token_mixture, whether its weights stay fixed while it writes. scoring: whether the text itself is scored.
    grammar: what the new text has to match.
    """

    ids: tuple[int, ...]
    prompt: Prompt | Mixture | None = None
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    client: str = ""
    skips: tuple[int, ...] = ()
    token_mixture: bool = False
    scoring: Scoring | None = None
    grammar: Grammar | None = None

    @property
    def most_new(self) -> int:
        """Most tokens that are drawn."""
        return 0 if self.scoring is not None and self.scoring.only else self.sampling.max_tokens


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


def widths(request: Request, model: DescribedModel) -> list[int]:
    """For each component the positions ahead of the request's ids, less the ids that it skips."""
    prompts = components_of(request.prompt)
    skips = request.skips or (0,) * len(prompts)
    return [prefix_length(model, prompt) - skip for prompt, skip in zip(prompts, skips, strict=True)]


def check_room(
    request: Request,
    in_front: Sequence[int],
    context_length: int,
    *,
    sides: EncoderDecoder | None = None,
    where: str = "prompt",
    do: str = "shorten the text or ask for less",
) -> None:
    """Raise ConfigError where there is nothing to continue, or the continuation does not fit the model's context.

    in_front: the request's `widths`. sides: of an encoder-decoder, where the new text has a context of its own.
    """
    width, new = max(in_front), request.most_new
    if min(in_front) + len(request.ids) == 0:
        raise ConfigError("there is nothing to continue", where=where, do="give a text or a soft prompt")
    read, written = {"in front": width, "text": len(request.ids)}, {"new": new}
    if sides is None:
        check_context(read | written, context_length, what="the text", where=where, do=do)
        return
    read, written = read | {"end": len(sides.end_ids)}, {"start": len(sides.start_ids)} | written
    for parts, what in ((read, "the input"), (written, "the output")):
        check_context(parts, context_length, what=what, where=where, do=do)


def check_token_ids(sampling: Sampling, vocab_size: int) -> None:
    """Raise ConfigError where a setting names a token that the vocabulary does not have."""
    last = vocab_size - 1
    biased = [("logit_bias", token) for token, _ in sampling.logit_bias]
    for where, token in (*biased, *(("banned", token) for one in sampling.banned for token in one)):
        if not 0 <= token <= last:
            raise ConfigError("no such token", where=where, expected=f"0 to {last}", got=token)


def room_for_text(model: DescribedModel, context_length: int, ahead: int, new: int) -> int:
    """Positions left for a text after `ahead` positions and before `new` tokens, by the rule of `check_room`; below 1: none."""
    sides = model.encoder_decoder
    return context_length - ahead - (new if sides is None else len(sides.end_ids))


def room_for_new(model: DescribedModel, context_length: int, ahead: int) -> int:
    """Most new tokens after `ahead` positions of soft prompt and text."""
    sides = model.encoder_decoder
    return context_length - (ahead if sides is None else len(sides.start_ids))


@dataclass(frozen=True)
class Chunk:
    """New text and its tokens. The text is empty while a character or a possible stop string is incomplete.

    scored: for a scored text, in its first chunk alone: those of its tokens that have log probabilities.
    """

    text: str
    drawn: tuple[Drawn, ...]
    scored: tuple[Drawn, ...] | None = None


@dataclass(frozen=True)
class End:
    """The last event of a request. error: why it failed. n_prompt counts the soft prompt, BOS and text, n_new the drawn tokens.
    ended_by: the end-of-text token that was drawn, which is not counted."""

    reason: Reason
    n_prompt: int
    n_new: int
    error: SordinoError | None = None
    ended_by: Drawn | None = None


Event = Chunk | End
