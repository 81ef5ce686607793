"""Callers on loops, one engine on a thread: everybody is answered, and who leaves is forgotten."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace

import pytest

from sordino.engine.config import Limits
from sordino.engine.embedded import EmbeddedEngine
from sordino.engine.engine import Engine
from sordino.engine.requests import Chunk, End, Request
from sordino.errors import ConfigError, EngineBusy
from tests.engine.backend_conformance import completed
from tests.engine.plain_model import STOP, TAME, Model, alone, prompt
from tests.waiting import WAIT, until

ENDLESS = replace(TAME, max_tokens=90, logit_bias=((STOP, -1e9),))


class Slow(Model):
    """A step takes a hundredth of a second, or as long as is said."""

    seconds = 0.01

    def run(self, spans):
        time.sleep(self.seconds)
        return super().run(spans)


@pytest.fixture
def model() -> Model:
    return Slow()


@pytest.fixture
def backend(model: Model) -> Iterator[EmbeddedEngine]:
    made = EmbeddedEngine(Engine(model, Limits(rows=3, queue=50, tokens=16, chunk=8)))
    made.start()
    yield made
    made.stop(finish=False, seconds=10)


def settled(model: Model) -> None:
    until(lambda: not model.rows, "rows are left")


def test_many_at_once_get_what_each_would_get_alone(backend: EmbeddedEngine, model: Model) -> None:
    requests = [Request((1 + n, 2), prompt(float(n % 3)), TAME, seed=n) for n in range(20)]

    async def all_of_them() -> list[tuple[str, str]]:
        done = await asyncio.gather(*(completed(backend, request) for request in requests))
        return [(text, end.reason) for text, _, end in done]

    assert asyncio.run(all_of_them()) == [alone(request) for request in requests]
    settled(model)


class Inbox(queue.SimpleQueue):
    """Counts how often somebody waited in it for nobody."""

    in_vain = 0

    def get(self, block=True, timeout=None):
        try:
            return super().get(block, timeout)
        except queue.Empty:
            self.in_vain += timeout is not None
            raise


def test_only_who_had_company_waits_for_company(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed."""
    monkeypatch.setattr("sordino.engine.embedded._GATHER_SECONDS", 0.5)
    monkeypatch.setattr("sordino.engine.embedded._GATHER_AT_MOST", WAIT)
    backend = EmbeddedEngine(Engine(model, Limits(rows=3, queue=50, tokens=16, chunk=8)))
    inbox = backend._inbox = Inbox()
    backend.start()

    def ask(count: int) -> None:
        async def asked() -> None:
            await asyncio.gather(*(completed(backend, Request((1,), None, TAME, seed=n)) for n in range(count)))

        asyncio.run(asked())
        settled(model)

    ask(1)
    assert inbox.in_vain == 0
    ask(3)
    # Now there is company, and its callers' farewells do not end it.
    ask(1)
    assert inbox.in_vain == 1
    ask(1)
    assert inbox.in_vain == 1
    assert backend.stop(finish=True, seconds=WAIT)


def test_a_farewell_that_comes_while_a_text_is_kept_does_not_keep_the_thread() -> None:
    class Keeping(Slow):
        def close(self, number, ids):
            time.sleep(0.2)
            super().close(number, ids)

    backend = EmbeddedEngine(Engine(Keeping()))
    backend.start()

    async def stopped() -> bool:
        task = asyncio.create_task(completed(backend, Request((1,), None, replace(ENDLESS, max_tokens=20))))
        await asyncio.sleep(0.05)
        ended = asyncio.create_task(asyncio.to_thread(backend.stop, finish=True, seconds=WAIT))
        _, _, end = await task
        assert end.reason == "length"
        return await ended

    assert asyncio.run(stopped())


def test_callers_on_several_loops(backend: EmbeddedEngine) -> None:
    found: list[str] = []

    def caller(number: int) -> None:
        found.append(asyncio.run(completed(backend, Request((number,), None, TAME, seed=number)))[0])

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(alone(Request((number,), None, TAME, seed=number))[0] for number in range(1, 5))


def test_a_caller_who_leaves_frees_its_row(backend: EmbeddedEngine, model: Model) -> None:
    async def leave_after_three() -> None:
        async with aclosing(backend.stream([Request((1,), None, ENDLESS)])) as events:
            async for count, _ in _counted(events):
                if count == 3:
                    break

    asyncio.run(leave_after_three())
    settled(model)


def test_a_cancelled_caller_frees_its_row_and_its_place_in_the_queue(backend: EmbeddedEngine, model: Model) -> None:
    async def cancel_all() -> None:
        tasks = [asyncio.create_task(completed(backend, Request((1,), None, ENDLESS))) for _ in range(9)]
        async with asyncio.timeout(60):
            while backend.counts() != (3, 6):
                await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(cancel_all())
    settled(model)
    assert backend.counts() == (0, 0)


def test_what_is_not_taken_is_said(backend: EmbeddedEngine) -> None:
    with pytest.raises(ConfigError, match="context"):
        asyncio.run(completed(backend, Request((1,) * 99, None, TAME)))


def test_a_graceful_stop_lets_running_requests_finish(backend: EmbeddedEngine) -> None:
    request = Request((1,), None, replace(ENDLESS, max_tokens=20))

    async def stop_meanwhile() -> str:
        task = asyncio.create_task(completed(backend, request))
        await asyncio.sleep(0.05)
        stopping = asyncio.to_thread(backend.stop, finish=True)
        (text, _, end), stopped = await asyncio.gather(task, stopping)
        assert (end.reason, stopped) == ("length", True)
        return text

    assert asyncio.run(stop_meanwhile()) == alone(request)[0]
    with pytest.raises(EngineBusy, match="stopping"):
        asyncio.run(completed(backend, request))


def test_a_hard_stop_gives_everybody_an_end(backend: EmbeddedEngine, model: Model) -> None:
    # No text ends by itself before it is stopped.
    model.seconds = 0.3

    async def stop_meanwhile() -> list[str]:
        tasks = [asyncio.create_task(completed(backend, Request((1,), None, ENDLESS))) for _ in range(5)]
        while backend.counts() != (3, 2):
            await asyncio.sleep(0.01)
        await asyncio.to_thread(backend.stop, finish=False)
        return [end.reason for _, _, end in await asyncio.gather(*tasks)]

    assert asyncio.run(stop_meanwhile()) == ["aborted"] * 5
    assert model.rows == {}


def test_a_bug_in_a_step_leaves_nobody_waiting() -> None:
    class Broken(Model):
        def run(self, spans):
            raise ZeroDivisionError("a bug")

    crashes: list[BaseException] = []
    backend = EmbeddedEngine(Engine(Broken()), crashed=crashes.append)
    backend.start()

    async def ask() -> End:
        return (await completed(backend, Request((1,), None, TAME)))[2]

    end = asyncio.run(ask())
    assert end.reason == "failed"
    assert "a bug" in str(end.error)
    assert isinstance(backend.dead, ZeroDivisionError)
    assert len(crashes) == 1
    with pytest.raises(EngineBusy, match="after an error"):
        asyncio.run(ask())


async def _counted(events):
    count = 0
    async for _, event in events:
        if isinstance(event, Chunk):
            count += 1
            yield count, event
