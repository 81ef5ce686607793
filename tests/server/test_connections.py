"""Clients that hold connections: headers that never end, silence, answers that nobody reads."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from sordino.server import errors
from sordino.server.connections import TimedConnection
from sordino.server.page import live as page_live
from sordino.server.serving import ServerLimits
from tests.server.running import Running, running
from tests.waiting import WAIT, until

HALF = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = ServerLimits(header_seconds=0.6, read_seconds=0.6, connections=20)
    with running(tmp_path_factory.mktemp("connections"), limits=limits, with_page=True) as made:
        yield made


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Closes connections where there are too many, and none for taking its time."""
    limits = ServerLimits(header_seconds=WAIT, read_seconds=WAIT, connections=20)
    with running(tmp_path_factory.mktemp("patient"), limits=limits, with_page=True) as made:
        yield made


def opened(live: Running, stack: ExitStack, *, buffer: int | None = None) -> socket.socket:
    one = socket.socket()
    if buffer is not None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    one.connect(("127.0.0.1", int(live.url.rpartition(":")[2])))
    one.settimeout(WAIT)
    return stack.enter_context(closing(one))


def is_closed(one: socket.socket) -> bool:
    """Waits for it."""
    try:
        while one.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def drip(one: socket.socket) -> None:
    """A byte now and then, until it is no longer taken."""
    deadline = time.monotonic() + WAIT
    with suppress(OSError):
        while True:
            one.sendall(b"a")
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_what_sends_no_whole_request_is_closed_however_slowly_it_goes_on(live: Running) -> None:
    with ExitStack() as stack:
        silent, half, later = (opened(live, stack) for _ in range(3))
        half.sendall(HALF)
        later.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + HALF)
        drip(half)
        assert is_closed(silent)
        assert is_closed(later)


def test_a_request_that_is_answered_slowly_is_not_closed(live: Running) -> None:
    body = {"model": "tiny-llama", "prompt": "a", "max_tokens": 200, "temperature": 0, "ignore_eos": True, "n": 4}
    answer = httpx.post(f"{live.url}/v1/completions", json=body, timeout=120)
    assert [one["finish_reason"] for one in answer.json()["choices"]] == ["length"] * 4


def test_beyond_the_most_of_an_address_the_oldest_without_a_request_is_closed(patient: Running) -> None:
    with ExitStack() as stack:
        many = [opened(patient, stack) for _ in range(20)]
        for one in many:
            one.sendall(HALF)
        newest = opened(patient, stack)
        newest.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert newest.recv(15) == b"HTTP/1.1 200 OK"
        assert is_closed(many[0])


def test_an_answer_that_nobody_reads_is_given_up(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    drop, dropped = TimedConnection.drop, []

    def seen(connection: TimedConnection) -> None:
        drop(connection)
        dropped.append(connection.client)

    monkeypatch.setattr(TimedConnection, "drop", seen)
    body = json.dumps(
        {"prompt": "a", "max_tokens": 240, "stream": True, "logprobs": 20, "n": 16, "ignore_eos": True}
    ).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with ExitStack() as stack:
        one = opened(live, stack, buffer=2048)
        one.sendall(head % len(body) + body)
        # Nothing is read before: the server would go on.
        until(lambda: one.getsockname() in dropped)
        assert is_closed(one)
        until(lambda: httpx.get(f"{live.url}/health").json()["running"] == 0, "its rows still run")


def test_a_tab_that_does_not_read_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_live, "_MOST_UNREAD", 8)
    # The system buffers some megabytes, which short messages would fill slowly.
    monkeypatch.setattr(errors, "LONGEST_MESSAGE", 70_000)
    sizes: list[int] = []
    original = page_live._Tab.send

    def counted(tab: Any, payload: Any) -> None:
        original(tab, payload)
        sizes.append(tab.outbox.qsize())

    monkeypatch.setattr(page_live._Tab, "send", counted)
    with running(tmp_path, with_page=True) as live:
        url = f"{live.url.replace('http', 'ws')}/ui/live"
        # A client that takes one message from the network, and then no more.
        # Packed, its answers would not fill the system's buffers; and its own pings would end it after 40 s.
        silent = connect(url, max_queue=1, close_timeout=1, compression=None, ping_interval=None)
        # One client: each new one reads the system's certificates.
        with httpx.Client() as client, suppress(ConnectionClosed), silent as tab:
            message = json.dumps({"do": "y" * 50_000, "id": 1})
            deadline = time.monotonic() + WAIT
            while client.get(f"{live.url}/ui/clients").json()["tabs"]:
                assert time.monotonic() < deadline, "the tab is still there"
                tab.send(message)
        assert max(sizes) == 8
        assert httpx.get(f"{live.url}/health").status_code == 200


def test_web_sockets_count_among_an_addresses_connections(patient: Running) -> None:
    """The oldest goes where there are too many, as its page connects again; what waits for no answer goes before it."""
    url = f"{patient.url.replace('http', 'ws')}/ui/live"
    with ExitStack() as stack:
        tabs = [stack.enter_context(connect(url, close_timeout=1)) for _ in range(18)]
        idle = opened(patient, stack)
        newest = [stack.enter_context(connect(url, close_timeout=1)) for _ in range(2)]
        assert is_closed(idle)
        tabs[0].ping().wait(WAIT)
        assert httpx.get(f"{patient.url}/health").status_code == 200
        # What was sent to it before may be read, and then it ends.
        deadline = time.monotonic() + WAIT
        with suppress(ConnectionClosed):
            while time.monotonic() < deadline:
                tabs[0].recv(timeout=WAIT)
        assert time.monotonic() < deadline
        newest[-1].ping().wait(WAIT)
        for tab in tabs[1:]:
            tab.close()
        until(lambda: httpx.get(f"{patient.url}/ui/clients").json()["tabs"] <= 2)
        more = [opened(patient, stack) for _ in range(17)]
        assert httpx.get(f"{patient.url}/health").status_code == 200
        more[0].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert more[0].recv(15) == b"HTTP/1.1 200 OK", "a WebSocket that was closed no longer counts"
