"""A request's own text scored: the same numbers however it is read, and nothing else of the request changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sordino.engine.config import Limits
from sordino.engine.engine import Engine
from sordino.engine.requests import Chunk, End, Event, Request, Scoring
from sordino.engine.runners.runner import Span
from sordino.engine.sampling import Drawn
from sordino.errors import ConfigError
from sordino.forward.combining import nll_of_texts, responsible, sampling_logits
from sordino.prompts.mixture import Gate, Mixture
from tests.engine.driving import collected, finished
from tests.engine.plain_model import TAME, Model, V, alone, logits_of, prompt

PAIR = Mixture((prompt(1.0), prompt(2.0, 5)), np.array([0.3, 0.7]))
REQUESTS = st.builds(
    Request,
    ids=st.lists(st.integers(1, V - 1), min_size=1, max_size=20).map(tuple),
    prompt=st.sampled_from([None, prompt(1.0), PAIR, replace(PAIR, rule="logits"), replace(PAIR, rule="vote")]),
    sampling=st.sampled_from([TAME, replace(TAME, max_tokens=20, temperature=0)]),
    seed=st.integers(0, 5),
    scoring=st.sampled_from([None, Scoring(2), Scoring(0, first_token=True), Scoring(1, only=True)]),
)


def scores_of(request: Request) -> list[Drawn]:
    """By the definition: one position after another."""
    assert request.scoring is not None
    components = request.prompt.components if isinstance(request.prompt, Mixture) else (request.prompt,)
    weights = torch.from_numpy(np.array(PAIR.weights_K)).log()
    found = []
    for at in range(0 if request.scoring.first_token else 1, len(request.ids)):
        each_KV = torch.stack([logits_of(soft, request.ids[:at]) for soft in components])
        logits_V = each_KV[0]
        if isinstance(request.prompt, Mixture):
            logits_V, logp_KV = sampling_logits(each_KV, weights, request.prompt.rule)
            logits_V = logits_V.clamp_min(-1e4)
            if request.prompt.rule == "sequence":
                weights = responsible(weights, logp_KV[:, request.ids[at]])
        logp_V = torch.log_softmax(logits_V.double(), dim=0)
        top = logp_V.topk(request.scoring.likeliest)
        ranked = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        found.append(Drawn(request.ids[at], float(logp_V[request.ids[at]]), ranked))
    return found


def check_scores(found: Sequence[Drawn], expected: Sequence[Drawn]) -> None:
    assert [(one.token, [word for word, _ in one.top]) for one in found] == [
        (one.token, [word for word, _ in one.top]) for one in expected
    ]
    numbers, others = ([[one.logprob, *(value for _, value in one.top)] for one in some] for some in (found, expected))
    for some, other in zip(numbers, others, strict=True):
        assert some == pytest.approx(other, abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=10),
    rows=st.integers(2, 5),
    chunk=st.integers(1, 8),
    room=st.integers(92, 200),
    steps_between=st.lists(st.integers(0, 4), min_size=10, max_size=10),
    remembers=st.booleans(),
)
def test_a_text_is_scored_as_alone_and_continued_as_without(
    requests: list[Request], rows: int, chunk: int, room: int, steps_between: list[int], remembers: bool
) -> None:
    """In whatever parts it is read, however often it is put back, whatever is cached."""
    model = Model(room, remembers=remembers)
    engine = Engine(model, Limits(rows=rows, queue=20, tokens=rows + 5, chunk=chunk))
    events: list[tuple[int, Event]] = []
    asked: dict[int, Request] = {}
    for request, steps in zip(requests, steps_between, strict=False):
        asked[engine.submit(request)] = request
        for _ in range(steps):
            events += engine.step()
    events += finished(engine)
    ends = collected(events)
    for number, request in asked.items():
        of_it = [event for at, event in events if at == number]
        scored = [at for at, event in enumerate(of_it) if isinstance(event, Chunk) and event.scored is not None]
        assert scored == ([] if request.scoring is None else [0])
        if request.scoring is not None:
            assert isinstance(of_it[0], Chunk)
            check_scores(of_it[0].scored or (), scores_of(request))
        if request.scoring is not None and request.scoring.only:
            assert [type(event) for event in of_it] == [Chunk, End]
            assert ends[number] == ("", "length")
        else:
            assert ends[number] == alone(request)
    assert model.rows == {}


def test_under_the_rule_of_texts_the_scores_sum_to_the_mixtures_loss() -> None:
    engine = Engine(Model())
    request = Request((3, 4, 5, 6, 7), PAIR, TAME, scoring=Scoring(0, only=True))
    engine.submit(request)
    (chunk,) = [event for _, event in finished(engine) if isinstance(event, Chunk)]
    nll_K = torch.zeros(1, 2)
    for k, soft in enumerate(PAIR.components):
        for at in range(1, 5):
            nll_K[0, k] -= torch.log_softmax(logits_of(soft, request.ids[:at]), dim=0)[request.ids[at]]
    expected = nll_of_texts(nll_K, torch.from_numpy(np.log(PAIR.weights_K))[None].float())
    assert -sum(one.logprob or 0 for one in chunk.scored or ()) == pytest.approx(float(expected), abs=1e-4)


def test_a_text_that_is_only_scored_needs_no_room_for_more() -> None:
    engine = Engine(Model())
    ids = (1,) * 90
    engine.submit(Request(ids, prompt(1.0), replace(TAME, max_tokens=20), scoring=Scoring(0, only=True)))
    assert [type(event) for _, event in finished(engine)] == [Chunk, End]
    with pytest.raises(ConfigError, match="new"):
        engine.submit(Request(ids, prompt(1.0), replace(TAME, max_tokens=20), scoring=Scoring(0)))


def test_what_cannot_be_scored_is_refused_by_name() -> None:
    gate = Gate(np.ones((2, 3), np.float32), np.zeros(2, np.float32))
    with pytest.raises(ConfigError, match="mixture_weights"):
        Engine(Model()).submit(Request((1, 2), replace(PAIR, gate=gate), TAME, scoring=Scoring(0)))
    with pytest.raises(ConfigError, match="logprobs"):
        Scoring(21)


def test_the_logits_of_scored_texts_are_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a vocabulary of 262,144 words those of a long text took 268 MB."""
    monkeypatch.setattr("sordino.engine.engine._SCORED_BYTES", 6 * 4 * V)
    held: list[int] = []

    class Watched(Model):
        def run(self, spans: Sequence[Span]) -> Tensor:
            held.append(sum(span.wanted for span in spans))
            return super().run(spans)

    engine = Engine(Watched(), Limits(rows=4, queue=20, tokens=40, chunk=20))
    soft = [None, prompt(1.0), PAIR, PAIR, prompt(2.0)]
    ids = tuple(at % (V - 1) + 1 for at in range(20))
    for only, one in enumerate(soft):
        engine.submit(Request(ids, one, replace(TAME, max_tokens=3), scoring=Scoring(1, only=bool(only % 2))))
    events = finished(engine)
    # Beside them a row that has drawn its first token.
    assert max(held) <= 6 + 4
    found = [event.scored for _, event in events if isinstance(event, Chunk) and event.scored is not None]
    assert [len(scored) for scored in found] == [19] * 5
