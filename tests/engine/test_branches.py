"""Requests after mixtures: branches that are opened, run and closed together, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.engine.config import Limits
from sordino.engine.engine import Engine
from sordino.engine.requests import Chunk, End, Request
from sordino.engine.runners.runner import Span
from sordino.engine.sampling import Sampling
from sordino.errors import ConfigError, DoesNotFit, ModelError, OutOfMemory
from sordino.prompts.mixture import Gate, Mixture
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.engine.driving import check_as_alone, check_ends_once, collected, finished
from tests.engine.plain_model import STOP, TAME, Model, V, alone, logits_of, prompt

GATE = Gate(np.array([[1.0, 2.0, 3.0], [0.0, -2.0, 1.0]], np.float32), np.array([0.1, 0.0], np.float32))
PAIR = Mixture((prompt(1.0), prompt(2.0, 5)), np.array([0.3, 0.7]))
MIXTURES = [
    PAIR,
    replace(PAIR, rule="logits"),
    Mixture((prompt(3.0), prompt(1.0), prompt(1.0)), np.array([1.0, 1.0, 0.0]), "vote"),
    replace(PAIR, gate=GATE),
    Mixture((prompt(2.0, 5),), np.ones(1)),
]
ENDLESS = replace(TAME, max_tokens=50, logit_bias=((STOP, -1e9),))

REQUESTS = st.builds(
    Request,
    ids=st.lists(st.integers(1, V - 1), max_size=20).map(tuple),
    prompt=st.sampled_from([None, prompt(1.0), *MIXTURES]),
    sampling=st.sampled_from([TAME, replace(TAME, stop=("b",)), replace(TAME, max_tokens=20, temperature=0)]),
    seed=st.integers(0, 5),
    client=st.sampled_from(["", "one"]),
    token_mixture=st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=12),
    rows=st.integers(3, 7),
    chunk=st.integers(1, 8),
    room=st.integers(140, 300),
    steps_between=st.lists(st.integers(0, 4), min_size=12, max_size=12),
    remembers=st.booleans(),
)
def test_a_mixture_says_what_it_would_say_alone(
    requests: list[Request], rows: int, chunk: int, room: int, steps_between: list[int], remembers: bool
) -> None:
    """Whoever comes and goes meanwhile, whatever its branches found kept, however often it was put back: weights and all."""
    model = Model(room, remembers=remembers)
    engine = Engine(model, Limits(rows=rows, queue=20, tokens=rows + 5, chunk=chunk))
    check_as_alone(engine, requests, steps_between)
    assert model.rows == {}


@settings(max_examples=100, deadline=None)
@given(
    plan=st.lists(st.tuples(REQUESTS, st.integers(0, 3), st.integers(0, 11)), min_size=1, max_size=12),
    fails_on=st.sampled_from([None, 5]),
)
def test_every_mixture_ends_exactly_once(plan: list[tuple[Request, int, int]], fails_on: int | None) -> None:
    model = Model(140, fails_on=fails_on)
    engine = Engine(model, Limits(rows=4, queue=20, tokens=9, chunk=4))
    check_ends_once(engine, plan)
    assert model.rows == {}


@pytest.mark.parametrize("rule", ["sequence", "probabilities", "logits", "vote"])
def test_a_mixture_of_one_is_its_component(rule: str) -> None:
    one = Mixture((prompt(2.0, 5),), np.ones(1), rule)  # type: ignore[arg-type]
    engine = Engine(Model())
    requests = [Request((1, 2), soft, TAME, seed) for seed in range(5) for soft in (one, one.components[0])]
    numbers = [engine.submit(request) for request in requests]
    ends = collected(finished(engine))
    assert [ends[number] for number in numbers[::2]] == [ends[number] for number in numbers[1::2]]


def test_components_that_agree_say_what_each_says_whatever_the_penalty() -> None:
    """A repetition penalty goes by the sign of a logit."""
    punished = replace(TAME, temperature=0, repetition_penalty=1.8, max_tokens=20)
    twins = Mixture((prompt(1.0), prompt(1.0)), np.ones(2))
    engine = Engine(Model())
    numbers = [engine.submit(Request((1, 2, 3), soft, punished)) for soft in (twins, prompt(1.0))]
    ends = collected(finished(engine))
    assert ends[numbers[0]] == ends[numbers[1]]


def test_weights_move_as_it_writes_unless_they_are_held() -> None:
    """Greedy, with very different components: after the first token they are those of whoever expected it."""
    engine = Engine(Model())
    told = replace(TAME, temperature=0, logprobs=3, max_tokens=4)
    for held in (False, True):
        engine.submit(Request((1, 2), PAIR, told, token_mixture=held))
    chunks: dict[int, list[Chunk]] = {0: [], 2: []}
    for number, event in finished(engine):
        if isinstance(event, Chunk):
            chunks[number].append(event)
    moved, held_still = ([part.drawn[0] for part in chunks[number] if part.drawn] for number in (0, 2))
    assert moved[0] == held_still[0]
    assert moved[1] != held_still[1]
    first = moved[0].token
    logp_KV = torch.stack([logits_of(soft, [1, 2]).log_softmax(-1) for soft in PAIR.components])
    w = torch.from_numpy(PAIR.weights_K.copy()).float()
    assert moved[0].logprob == pytest.approx(float((w @ logp_KV.exp())[first].log()), abs=1e-5)
    r = w * logp_KV.exp()[:, first]
    later_KV = torch.stack([logits_of(soft, [1, 2, first]).softmax(-1) for soft in PAIR.components])
    expected = float((r / r.sum() @ later_KV)[moved[1].token].log())
    assert moved[1].logprob == pytest.approx(expected, abs=1e-5)


def test_the_gate_reads_the_text_once() -> None:
    class Counting(Model):
        asked = 0

        def hidden_of(self, ids: Sequence[int]):  # type: ignore[no-untyped-def]
            Counting.asked += 1
            return super().hidden_of(ids)

    engine = Engine(Counting())
    request = Request((1, 2), replace(PAIR, gate=GATE), TAME)
    number = engine.submit(request)
    assert collected(finished(engine))[number] == alone(request)
    assert Counting.asked == 1


def test_a_gate_that_reads_no_numbers_ends_its_request_and_no_other() -> None:
    """Not greedily the first word of the vocabulary, as arg max has it of what is no number."""

    class Overflowing(Model):
        def hidden_of(self, ids: Sequence[int]):  # type: ignore[no-untyped-def]
            return np.array([np.inf, 0.0, 0.0])

    engine = Engine(Overflowing())
    gated = engine.submit(Request((1, 2), replace(PAIR, gate=GATE), replace(TAME, temperature=0)))
    other = Request((1, 2), PAIR, TAME)
    number = engine.submit(other)
    events = finished(engine)
    assert collected(events)[number] == alone(other)
    (end,) = (event for at, event in events if at == gated)
    assert isinstance(end, End)
    assert (end.reason, type(end.error)) == ("failed", ModelError)


def test_weights_of_the_request_need_no_gate() -> None:
    class Blind(Model):
        def hidden_of(self, ids: Sequence[int]):  # type: ignore[no-untyped-def]
            raise AssertionError("nobody asked the gate")

    engine = Engine(Blind())
    request = Request((1,), replace(PAIR, gate=GATE).with_weights([1, 3]), TAME)
    number = engine.submit(request)
    assert collected(finished(engine))[number] == alone(request)


def test_what_can_never_run_is_refused_at_once() -> None:
    engine = Engine(Model(room=100), Limits(rows=2, queue=9, tokens=9))
    with pytest.raises(ConfigError, match=r"more components than the engine runs rows.*at most 2"):
        engine.submit(Request((1,), MIXTURES[2], TAME))
    with pytest.raises(OutOfMemory, match="2 rows of"):
        engine.submit(Request((1,) * 10, PAIR, replace(TAME, max_tokens=50)))
    with pytest.raises(ConfigError, match="5 in front"):
        engine.submit(Request((1,) * 10, PAIR, replace(TAME, max_tokens=90)))


def check_only_the_pair_fails(model: Model) -> None:
    engine = Engine(model)
    bad, good = engine.submit(Request((1,), PAIR, TAME)), engine.submit(Request((1,), prompt(1.0), TAME))
    ends = collected(finished(engine))
    assert ends[bad] == ("", "failed")
    assert ends[good] == alone(Request((1,), prompt(1.0), TAME))
    assert model.rows == {}


def test_one_branch_that_cannot_be_opened_ends_the_request_and_leaves_nothing() -> None:
    class Choosy(Model):
        def open(self, number: int, soft: SoftPrompt | None, ids: Sequence[int], written: int = 0) -> int | None:
            if soft is PAIR.components[1]:
                raise DoesNotFit("not this one")
            return super().open(number, soft, ids)

    check_only_the_pair_fails(Choosy())


def test_one_branch_that_is_no_number_ends_its_request_and_no_other() -> None:
    class Spoiled(Model):
        def run(self, spans: Sequence[Span]) -> torch.Tensor:
            logits = super().run(spans)
            for at, span in enumerate(span for span in spans if span.wanted):
                if self.rows[span.number][0] is PAIR.components[1]:
                    logits[at, 3] = float("nan")
            return logits

    check_only_the_pair_fails(Spoiled())


def test_a_mixture_that_waits_for_memory_is_not_opened_at_every_step() -> None:
    class Counting(Model):
        opened = 0

        def open(self, number: int, soft: SoftPrompt | None, ids: Sequence[int], written: int = 0) -> int | None:
            self.opened += 1
            return super().open(number, soft, ids)

    model = Counting(room=130)
    engine = Engine(model, Limits(rows=4, queue=9, tokens=99))
    engine.submit(Request((1,) * 20, prompt(1.0), replace(ENDLESS, max_tokens=10)))
    engine.submit(Request((1,) * 45, prompt(1.0), replace(ENDLESS, max_tokens=10)))
    engine.step()
    number = engine.submit(Request((1,) * 30, PAIR, TAME))
    for _ in range(6):
        engine.step()
    assert engine.counts == (2, 1)
    assert model.opened == 2 + 2
    assert number in collected(finished(engine))
    assert model.rows == {}


def test_aborting_closes_every_branch() -> None:
    model = Model()
    engine = Engine(model)
    number = engine.submit(Request((1, 2), PAIR, ENDLESS))
    engine.step()
    assert len(model.rows) == engine.counts[0] == 2
    engine.abort(number)
    assert model.rows == {}
    assert engine.step() == [(number, End("aborted", 7, 1))]


def test_branches_may_do_without_the_first_ids() -> None:
    """As where one component stands after BOS, which the other has in its own text."""
    front = SoftPrompt(prompt(4.0).matrix, Metadata(placement="after_bos"))
    request = Request((9, 1, 2), Mixture((prompt(1.0), front), np.ones(2)), TAME, skips=(0, 1))
    bare = Request((9,), Mixture((prompt(1.0), front), np.ones(2)), Sampling(max_tokens=3), skips=(0, 1))
    engine = Engine(Model(), Limits(chunk=2))
    numbers = [engine.submit(one) for one in (request, bare)]
    ends = collected(finished(engine))
    assert [ends[number] for number in numbers] == [alone(request), alone(bare)]
