"""What every `Backend` owes, as checks that an implementation is run through. Each takes a backend that was started and is idle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from sordino.engine.backend import Backend
from sordino.engine.requests import Chunk, End, Event, Request, Scoring
from sordino.engine.sampling import Sampling
from sordino.errors import ConfigError, DoesNotFit, EngineBusy
from sordino.prompts.attention import PromptAttention, can_give
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import SoftPrompt
from tests.waiting import WAIT, until

GREEDY = Sampling(max_tokens=6, temperature=0)
DRAWN = Sampling(max_tokens=6, temperature=1.0, top_p=1.0)


async def completed(backend: Backend, request: Request) -> tuple[str, list[Chunk], End]:
    """The whole text, its chunks, and how it ended."""
    async with aclosing(backend.stream([request])) as stream:
        *chunks, end = [event async for _, event in stream]
    assert isinstance(end, End)
    return "".join(chunk.text for chunk in chunks), chunks, end


def events_of(backend: Backend, requests: Sequence[Request], **how: Any) -> list[tuple[int, Event]]:
    async def heard() -> list[tuple[int, Event]]:
        async with aclosing(backend.stream(requests, **how)) as events:
            return [one async for one in events]

    return asyncio.run(heard())


def texts_of(events: Sequence[tuple[int, Event]], count: int) -> list[str]:
    """Each request's text. Fails where one does not end exactly once, or says anything after its end."""
    texts, ended = [""] * count, [False] * count
    for index, event in events:
        assert not ended[index]
        if isinstance(event, Chunk):
            texts[index] += event.text
        else:
            ended[index] = True
    assert all(ended)
    return texts


def settled(backend: Backend) -> None:
    until(lambda: backend.counts() == (0, 0), "requests are left")


def ends_exactly_once(backend: Backend, prompt: SoftPrompt) -> None:
    requests = [Request((5, 6), soft, DRAWN, seed) for seed, soft in enumerate((None, prompt, prompt))]
    heard: list[float] = []
    for whole in (False, True):
        events = events_of(backend, requests, whole=whole, first=heard.append)
        texts_of(events, len(requests))
        ends = [event for _, event in events if isinstance(event, End)]
        assert {end.reason for end in ends} <= {"stop", "length"}
        assert all(end.n_new <= DRAWN.max_tokens for end in ends)
    assert len(heard) == 2
    settled(backend)


def depends_on_the_request_alone(backend: Backend, prompt: SoftPrompt) -> None:
    requests = [Request((5, 6, 7), soft, DRAWN, seed) for seed, soft in enumerate((None, prompt, None))]
    together = texts_of(events_of(backend, requests), len(requests))
    assert together == [texts_of(events_of(backend, [request]), 1)[0] for request in requests]
    assert together[0] == asyncio.run(completed(backend, requests[0]))[0]


def gives_out_no_stop_string(backend: Backend, prompt: SoftPrompt) -> None:
    """The first character of what is written without one is made the stop string."""
    request = Request((5, 6), prompt, replace(GREEDY, logit_bias=()), 1)
    (text,) = texts_of(events_of(backend, [request]), 1)
    for stop in {character for character in text if character.isalnum()}:
        events = events_of(backend, [replace(request, sampling=replace(GREEDY, stop=(stop,)))])
        assert texts_of(events, 1) == [text[: text.index(stop)]]
        assert isinstance(events[-1][1], End)
        assert events[-1][1].reason == "stop"


def refuses_what_it_cannot_do(backend: Backend, prompt: SoftPrompt) -> None:
    """By name, and in `stream` as in `check`."""
    mixture = Mixture((prompt, prompt.with_metadata(name="other")), [0.5, 0.5])  # type: ignore[arg-type]
    can = backend.capabilities
    held, strong, between = (
        prompt.with_metadata(attention=each)
        for each in (PromptAttention(hold=4), PromptAttention(None, 2), PromptAttention(None, 1.5))
    )
    for request, possible, named in (
        (Request((5,), prompt, GREEDY), "embedding prompt" in can.kinds, "embedding prompts"),
        (Request((5,), mixture, GREEDY), "mixture" in can.kinds, "mixtures"),
        (Request((5,), held, GREEDY), can.hold, "hold"),
        (Request((5,), strong, GREEDY), can_give(can.strengths, 2), "strength"),
        (Request((5,), between, GREEDY), can_give(can.strengths, 1.5), "strength"),
        (Request((5,), None, replace(GREEDY, logprobs=1)), can.log_probabilities, "log probabilities"),
        (Request((5, 6), None, GREEDY, scoring=Scoring(1)), can.scoring, "log probabilities"),
    ):
        if possible:
            backend.check([request])
            texts_of(events_of(backend, [request]), 1)
        else:
            for ask in (backend.check, lambda requests: events_of(backend, requests)):
                with pytest.raises(ConfigError, match=f"{backend.name} does not support {named}"):
                    ask([request])
    for ask in (backend.check, lambda requests: events_of(backend, requests)):
        with pytest.raises(ConfigError, match="context"):
            ask([Request((5,) * backend.context_length, None, GREEDY)])
    settled(backend)


def scores_a_text(backend: Backend, prompt: SoftPrompt) -> None:
    """In one chunk ahead of all others, and the text goes on as if it were not scored."""
    if not backend.capabilities.scoring:
        return
    plain = Request((5, 6, 7), prompt, replace(GREEDY, logprobs=0))
    for only in (False, True):
        events = events_of(backend, [replace(plain, scoring=Scoring(2, only=only))])
        chunks = [event for _, event in events if isinstance(event, Chunk)]
        assert [one.token for one in chunks[0].scored or ()] == [6, 7]
        assert all(len(one.top) == 2 and (one.logprob or 0) <= 0 for one in chunks[0].scored or ())
        assert texts_of(events, 1) == ([""] if only else texts_of(events_of(backend, [plain]), 1))
        assert not any(one.scored for one in chunks[1:])
    settled(backend)


def fails_alone_with_a_prompt_of_another_width(backend: Backend, wide: SoftPrompt) -> None:
    good = Request((5, 6), None, GREEDY)
    events = events_of(backend, [Request((5,), wide, GREEDY), good])
    assert texts_of(events, 2)[1] == texts_of(events_of(backend, [good]), 1)[0]
    (bad,) = [event for index, event in events if index == 0 and isinstance(event, End)]
    assert bad.reason == "failed"
    assert isinstance(bad.error, DoesNotFit)


def forgets_who_leaves(backend: Backend, prompt: SoftPrompt) -> None:
    async def leave() -> None:
        async with aclosing(backend.stream([Request((5,), prompt, replace(GREEDY, max_tokens=40))] * 2)) as events:
            await anext(events)

    asyncio.run(leave())
    settled(backend)


def takes_nothing_once_stopped(backend: Backend, prompt: SoftPrompt) -> None:
    assert backend.stop(finish=True, seconds=WAIT)
    for ask in (backend.check, lambda requests: events_of(backend, requests)):
        with pytest.raises(EngineBusy):
            ask([Request((5,), prompt, GREEDY)])
    assert backend.stop(finish=False, seconds=0)


CHECKS: tuple[Callable[[Backend, SoftPrompt], None], ...] = (
    ends_exactly_once,
    depends_on_the_request_alone,
    gives_out_no_stop_string,
    refuses_what_it_cannot_do,
    scores_a_text,
    forgets_who_leaves,
    takes_nothing_once_stopped,
)
