"""An engine driven from outside: requests come and go between its steps, and every event is collected."""

from __future__ import annotations

from collections.abc import Sequence

from sordino.engine.engine import Engine
from sordino.engine.requests import Chunk, Event, Request
from tests.engine.plain_model import alone


def collected(events: Sequence[tuple[int, Event]]) -> dict[int, tuple[str, str]]:
    """Text and reason of every request; fails where one ends twice, or has text after its end."""
    texts: dict[int, str] = {}
    ends: dict[int, str] = {}
    for number, event in events:
        assert number not in ends
        if isinstance(event, Chunk):
            texts[number] = texts.get(number, "") + event.text
        else:
            ends[number] = event.reason
    return {number: (texts.get(number, ""), reason) for number, reason in ends.items()}


def finished(engine: Engine, limit: int = 3000) -> list[tuple[int, Event]]:
    events: list[tuple[int, Event]] = []
    for _ in range(limit):
        if not engine.busy:
            return events
        events += engine.step()
    raise AssertionError("the engine does not come to an end")


def check_as_alone(engine: Engine, requests: Sequence[Request], steps_between: Sequence[int]) -> None:
    """Each request gives what it gives alone, with so many steps between it and the next."""
    events: list[tuple[int, Event]] = []
    expected = {}
    for request, steps in zip(requests, steps_between, strict=False):
        expected[engine.submit(request)] = alone(request)
        for _ in range(steps):
            events += engine.step()
    assert collected(events + finished(engine)) == expected


def check_ends_once(engine: Engine, plan: Sequence[tuple[Request, int, int]]) -> set[str]:
    """Each request ends once, and none is left. plan: a request, steps after it, the request to abort then. The reasons."""
    numbers: list[int] = []
    events: list[tuple[int, Event]] = []
    for request, steps, victim in plan:
        numbers.append(engine.submit(request))
        for _ in range(steps):
            events += engine.step()
        engine.abort(numbers[victim % len(numbers)])
    outcome = collected(events + finished(engine))
    assert sorted(outcome) == numbers
    assert engine.counts == (0, 0)
    return {reason for _, reason in outcome.values()}
