"""The engine over a model that is a function of a row's own ids: what a row says must not depend on anything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sordino.engine.config import Limits
from sordino.engine.engine import Engine
from sordino.engine.requests import End, Request
from sordino.engine.runners.runner import Span
from sordino.engine.sampling import Drawn, Sampling, sample
from sordino.engine.seen_tokens import SeenTokens
from sordino.errors import ConfigError, DoesNotFit, EngineBusy, OutOfMemory
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.engine.driving import check_as_alone, check_ends_once, collected, finished
from tests.engine.plain_model import STOP, TAME, Model, V, alone, prompt

REQUESTS = st.builds(
    Request,
    ids=st.lists(st.integers(1, V - 1), max_size=20).map(tuple),
    prompt=st.sampled_from([None, prompt(1.0), prompt(2.0, 5)]),
    sampling=st.sampled_from(
        [TAME, replace(TAME, stop=("b",)), Sampling(max_tokens=3, temperature=0), replace(TAME, max_tokens=20)]
    ),
    seed=st.integers(0, 5),
    client=st.sampled_from(["", "one", "two"]),
)


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=14),
    rows=st.integers(1, 5),
    chunk=st.integers(1, 8),
    room=st.integers(46, 200),
    steps_between=st.lists(st.integers(0, 4), min_size=14, max_size=14),
    remembers=st.booleans(),
)
def test_a_row_says_what_it_would_say_alone(
    requests: list[Request], rows: int, chunk: int, room: int, steps_between: list[int], remembers: bool
) -> None:
    """Whoever comes and goes meanwhile, in whatever parts it is read, however often it was put back."""
    model = Model(room, remembers=remembers)
    engine = Engine(model, Limits(rows=rows, queue=20, tokens=rows + 5, chunk=chunk))
    check_as_alone(engine, requests, steps_between)
    assert model.rows == {}


@settings(max_examples=100, deadline=None)
@given(
    plan=st.lists(st.tuples(REQUESTS, st.integers(0, 3), st.integers(0, 13)), min_size=1, max_size=14),
    fails_on=st.sampled_from([None, 5]),
)
def test_every_request_ends_exactly_once(plan: list[tuple[Request, int, int]], fails_on: int | None) -> None:
    """Whether it finishes, fails, or is aborted: in the queue, while it is read, while it writes, or after its end."""
    model = Model(60, fails_on=fails_on)
    engine = Engine(model, Limits(rows=3, queue=20, tokens=8, chunk=4))
    reasons = check_ends_once(engine, plan)
    assert reasons <= {"stop", "length", "aborted", "failed"}
    assert model.rows == {}


def test_an_aborted_row_is_gone_with_the_next_step() -> None:
    model = Model()
    engine = Engine(model)
    number = engine.submit(Request((1, 2), sampling=replace(TAME, max_tokens=50, logit_bias=((STOP, -1e9),))))
    engine.step()
    engine.abort(number)
    assert model.rows == {}
    assert engine.step() == [(number, End("aborted", 3, 1))]
    assert not engine.busy


def test_an_end_is_told_before_its_text_is_kept() -> None:
    model = Model()
    engine = Engine(model)
    engine.submit(Request((1, 2), sampling=replace(TAME, max_tokens=1)))
    events = engine.step()
    assert isinstance(events[-1][1], End)
    assert len(model.rows) == 1
    assert engine.busy
    assert engine.step() == []
    assert model.rows == {}
    assert not engine.busy


def test_a_failing_step_ends_its_rows_and_no_others() -> None:
    model = Model(fails_on=7)
    engine = Engine(model, Limits(rows=1, queue=9, tokens=4, chunk=4))
    bad, good = engine.submit(Request((7,), sampling=TAME)), engine.submit(Request((1,), sampling=TAME))
    outcome = collected(finished(engine))
    assert outcome[bad] == ("", "failed")
    assert outcome[good] == alone(Request((1,), sampling=TAME))


def test_a_prompt_that_does_not_fit_fails_alone() -> None:
    engine = Engine(Model())
    wide = SoftPrompt(torch.ones(2, 4).numpy(), Metadata(placement="start"))
    bad, good = engine.submit(Request((1,), wide, TAME)), engine.submit(Request((1,), sampling=TAME))
    events = finished(engine)
    assert collected(events)[good][1] in ("stop", "length")
    ends = {number: event for number, event in events if isinstance(event, End)}
    assert isinstance(ends[bad].error, DoesNotFit)


def test_what_can_never_run_is_refused_at_once() -> None:
    engine = Engine(Model(room=50), Limits(rows=1, queue=1, tokens=4, chunk=4))
    long = replace(TAME, max_tokens=90)
    with pytest.raises(ConfigError, match=r"context.*2 in front \+ 20 text \+ 90 new"):
        engine.submit(Request((1,) * 20, prompt(1.0), long))
    with pytest.raises(OutOfMemory, match="does not fit into the memory"):
        engine.submit(Request((1,) * 20, None, replace(TAME, max_tokens=60)))
    with pytest.raises(ConfigError, match="logit_bias"):
        engine.submit(Request((1,), sampling=replace(TAME, logit_bias=((V, 1.0),))))
    for _ in range(2):
        # One will run, one waits.
        engine.submit(Request((1,), sampling=TAME))
    with pytest.raises(EngineBusy, match="queue is full"):
        engine.submit(Request((1,), sampling=TAME))
    assert not engine.runner.rows  # type: ignore[attr-defined]


def test_closing_ends_everything() -> None:
    model = Model()
    engine = Engine(model, Limits(rows=1, queue=9, tokens=4, chunk=4))
    numbers = [engine.submit(Request((1,), sampling=TAME)) for _ in range(3)]
    engine.step()
    assert sorted(number for number, event in engine.close() if isinstance(event, End)) == numbers
    assert model.rows == {}
    with pytest.raises(EngineBusy, match="closed"):
        engine.submit(Request((1,), sampling=TAME))


def test_usage_counts_what_was_read_and_said() -> None:
    engine = Engine(Model())
    request = Request((1, 2, 3), prompt(1.0, 4), replace(TAME, max_tokens=5, logit_bias=((STOP, -1e9),)))
    engine.submit(request)
    assert finished(engine)[-1][1] == End("length", 7, 5)


class Spoiled(Model):
    """A model whose answer after one soft prompt is no number."""

    def run(self, spans: Sequence[Span]) -> Tensor:
        logits = super().run(spans)
        for at, span in enumerate(span for span in spans if span.wanted):
            if self.rows[span.number][0] is BAD:
                logits[at, 3] = float("nan")
        return logits


BAD = prompt(9.0)


def test_what_is_no_number_ends_its_own_row_and_no_other() -> None:
    engine = Engine(Spoiled(), Limits(rows=3, queue=9))
    good = [Request((1, 2), prompt(1.0), TAME, seed) for seed in range(2)]
    numbers = [engine.submit(one) for one in (good[0], Request((1,), BAD, TAME), good[1])]
    ends = collected(finished(engine))
    assert ends[numbers[1]] == ("", "failed")
    assert [ends[numbers[0]], ends[numbers[2]]] == [alone(one) for one in good]


def test_drawing_that_fails_ends_its_own_row_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from sordino.engine import engine as module

    def failing(logits: Tensor, seen: SeenTokens, sampling: Sampling, *rest: Any) -> Drawn:
        if sampling.top_k == 7:
            raise ZeroDivisionError
        return sample(logits, seen, sampling, *rest)

    monkeypatch.setattr(module, "sample", failing)
    engine = Engine(Model(), Limits(rows=3, queue=9))
    good = Request((1, 2), prompt(1.0), TAME)
    numbers = [engine.submit(one) for one in (good, Request((1,), None, replace(TAME, top_k=7)))]
    events = finished(engine)
    ends = collected(events)
    assert ends == {numbers[0]: alone(good), numbers[1]: ("", "failed")}
    (error,) = [event.error for _, event in events if isinstance(event, End) and event.error]
    assert "drawing a token failed" in error.message


def test_an_idle_engine_takes_as_many_as_it_has_rows_without_a_queue() -> None:
    engine = Engine(Model(), Limits(rows=2, queue=0))
    requests = [Request((1,), None, TAME, seed) for seed in range(3)]
    engine.check(requests[:2])
    with pytest.raises(EngineBusy):
        engine.check(requests)
    numbers = [engine.submit(one) for one in requests[:2]]
    with pytest.raises(EngineBusy):
        engine.submit(requests[2])
    ends = collected(finished(engine))
    assert [ends[number] for number in numbers] == [alone(one) for one in requests[:2]]
