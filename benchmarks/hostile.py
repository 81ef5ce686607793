"""Clients of `benchmarks.soak` that do harm: headers that come byte by byte, silence, answers that nobody reads, and lists of very
many items. Meanwhile /health is asked all the time, in a process of its own. Prints what came of it as JSON.

    python -m benchmarks.hostile http://127.0.0.1:5100 30
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

EACH = 20
# A request line or two; the rest never comes.
HALF = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
LISTS: dict[str, Callable[[], tuple[str, dict[str, Any]]]] = {
    "wrong items": lambda: ("/v1/completions", {"prompt": [0.5] * 400_000}),
    "empty objects": lambda: ("/v1/chat/completions", {"messages": [{}] * 400_000}),
    "wrong stops": lambda: ("/v1/completions", {"prompt": "a", "stop": [0] * 400_000}),
    "many texts": lambda: ("/v1/completions", {"prompt": ["a"] * 200_000, "max_tokens": 1}),
    "many biases": lambda: ("/v1/completions", {"prompt": "a", "logit_bias": {str(at): "x" for at in range(100_000)}}),
    "unknown fields": lambda: ("/v1/completions", {"prompt": "a", **{f"x{at}": 0 for at in range(100_000)}}),
    "wrong stop_sequence": lambda: ("/api/v1/generate", {"prompt": "a", "stop_sequence": [0] * 400_000}),
}


async def slow(host: str, port: int, tally: Counter[str]) -> None:
    """Headers byte by byte, until the server has had enough."""
    reader, writer = await asyncio.open_connection(host, port)
    with closing(writer):
        writer.write(HALF)
        while not reader.at_eof():
            writer.write(b"a")
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.2)
    tally["slow ones closed"] += 1


async def silent(host: str, port: int, tally: Counter[str]) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    with closing(writer):
        await reader.read(1)
    tally["silent ones closed"] += 1


async def half_reading(host: str, port: int, tally: Counter[str]) -> None:
    """Asks for a long stream, reads a little of it, and then no more."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    with closing(raw):
        await loop.sock_connect(raw, (host, port))
        body = json.dumps({"prompt": "The keeper", "max_tokens": 200, "stream": True, "logprobs": 20}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        await loop.sock_sendall(raw, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await loop.sock_recv(raw, 500)
        await asyncio.sleep(5)
    tally["half-reading ones left"] += 1


async def oversized(host: str, port: int, tally: Counter[str]) -> None:
    for name, made in LISTS.items():
        path, body = made()
        status = await asyncio.to_thread(posted, host, port, path, json.dumps(body).encode())
        tally[f"{name}: {status}"] += 1
    await asyncio.sleep(1)


def posted(host: str, port: int, path: str, body: bytes) -> int:
    with closing(HTTPConnection(host, port, timeout=60)) as connection:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status


async def forever(client: Callable[[str, int, Counter[str]], Awaitable[None]], *given: Any) -> None:
    while True:
        with suppress(OSError):
            await client(*given)


async def run(host: str, port: int, seconds: float) -> Counter[str]:
    tally: Counter[str] = Counter()
    clients = [*[slow] * EACH, *[silent] * EACH, *[half_reading] * (EACH // 4), oversized]
    tasks = [asyncio.create_task(forever(client, host, port, tally)) for client in clients]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return tally


def watch(host: str, port: int, seconds: float, found: Any) -> None:
    """How long /health takes, asked ten times a second."""
    until, taken = time.monotonic() + seconds, []
    while time.monotonic() < until:
        began = time.monotonic()
        with closing(HTTPConnection(host, port, timeout=60)) as connection:
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200
        taken.append(time.monotonic() - began)
        time.sleep(0.1)
    found.put(taken)


def main() -> None:
    address, seconds = urlsplit(sys.argv[1]), float(sys.argv[2])
    assert address.hostname is not None
    assert address.port is not None
    found: Any = multiprocessing.Queue()
    watcher = multiprocessing.Process(target=watch, args=(address.hostname, address.port, seconds, found))
    watcher.start()
    tally = asyncio.run(run(address.hostname, address.port, seconds))
    taken = sorted(found.get(timeout=120))
    watcher.join()
    health = {"asked": len(taken), "median ms": round(1e3 * taken[len(taken) // 2]), "worst ms": round(1e3 * taken[-1])}
    print(json.dumps({"health": health, **dict(sorted(tally.items()))}))


if __name__ == "__main__":
    main()
