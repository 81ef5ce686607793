"""Bodies with very many unknown fields or wrong items: an error each took seconds in which no other request was answered."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from sordino.server import kobold, koboldcpp, memory, prompts_api, tokens
from sordino.server.bodies import StrictBody
from sordino.server.page.stories import Story
from sordino.server.page.training_settings import RunRequest
from tests.server.running import running
from tests.waiting import WAIT

SOURCE = Path(__file__).resolve().parents[2] / "src"
# Prints KiB in use: after blocks were freed between others that stay, and after a trim.
HOLES = """
import ctypes
from sordino.server.memory import trim
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
used = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
start = used()
blocks = [libc.malloc(60_000) for _ in range(2000)]
for block in blocks:
    ctypes.memset(block, 1, 60_000)
for block in blocks[:-1:2] + blocks[1:-1:2]:
    libc.free(block)
freed = used() - start
trim()
print(freed, used() - start)
"""
MANY = {f"x{number}": 0 for number in range(100_000)}


class Small(StrictBody):
    known: int = 0


def test_an_unknown_field_is_named_and_very_many_are_one_error() -> None:
    assert Small.model_validate({"known": 1}).known == 1
    with pytest.raises(ValidationError, match="other"):
        Small.model_validate({"other": 1})
    for body, given in ((Small, MANY), (Story, MANY), (RunRequest, {"settings": MANY})):
        with pytest.raises(ValidationError, match="at most 256 fields were expected") as found:
            body.model_validate(given)
        assert found.value.error_count() == 1


def test_the_pages_routes_refuse_them_at_once(tmp_path: Path) -> None:
    with running(tmp_path, with_page=True) as live, httpx.Client(base_url=live.url, timeout=60) as client:
        client.get("/health")
        requests = [
            ("POST", "/ui/ask", {"do": "write", "id": 1, **MANY}),
            ("PUT", "/ui/stories/a", MANY),
            ("POST", "/v1/soft_prompt/load", MANY),
            ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "a", **MANY}]}),
        ]
        for method, path, body in requests:
            answer = client.request(method, path, json=body)
            assert "at most 256 fields" in answer.text, (path, answer.text[:200])
            assert len(answer.content) < 1000


def unbounded(schema: Any, *, behind_check: bool = False) -> Iterator[str]:
    """Lists and objects of a pydantic-core schema in which each wrong item makes an error of its own."""
    if isinstance(schema, list | tuple):
        for one in schema:
            yield from unbounded(one, behind_check=behind_check)
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    if kind == "list" and not behind_check and not schema.get("fail_fast") and schema.get("max_length", 10**9) > 1024:
        yield f"list of {schema.get('items_schema')}"
    if kind == "dict" and not behind_check and schema.get("values_schema", {"type": "any"})["type"] != "any":
        yield f"object of {schema['values_schema']}"
    for name, value in schema.items():
        if name != "metadata":
            through = behind_check and kind in ("nullable", "union")
            yield from unbounded(value, behind_check=kind == "function-before" or through)


def models() -> list[type[BaseModel]]:
    """Of the server and the page."""
    found: list[type[BaseModel]] = []
    waiting: list[type[BaseModel]] = [BaseModel]
    while waiting:
        waiting += (classes := waiting.pop().__subclasses__())
        found += [one for one in classes if one.__module__.startswith("sordino.server")]
    return found


def test_no_body_makes_an_error_of_each_wrong_item() -> None:
    known = [*koboldcpp.router.routes, *tokens.router.routes, *kobold.router.routes, *prompts_api.router.routes]
    alone = [one for route in known if isinstance(route, APIRoute) for one in route.dependant.body_params]
    schemas = [one._type_adapter.core_schema for one in alone] + [one.__pydantic_core_schema__ for one in models()]
    assert len(models()) > 30
    assert len(alone) > 6
    assert not [one for schema in schemas for one in unbounded(schema)]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "tool_calls": [0] * 100_000}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": [0] * 100_000}),
        ("/api/extra/detokenize", {"ids": [None] * 100_000}),
        ("/v1/completions", {"prompt": "a", "model": "x" * 100_000}),
    ],
)
def test_a_long_list_of_wrong_items_is_refused_at_once(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    with running(tmp_path) as live, httpx.Client(base_url=live.url, timeout=60) as client:
        client.get("/health")
        answer = client.post(path, json=body)
    assert answer.status_code in (400, 404, 422)
    assert len(answer.content) < 2000


def test_what_requests_took_goes_back_to_the_system_once_none_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed, begun, whole = threading.Semaphore(0), threading.Event(), threading.Event()
    monkeypatch.setattr(memory, "trim", trimmed.release)
    monkeypatch.setattr(memory, "_QUIET_SECONDS", 0.2)

    def slowly() -> Iterator[bytes]:
        yield b'{"prompt": '
        begun.set()
        whole.wait(WAIT)
        yield b'"a"}'

    with (
        running(tmp_path) as live,
        httpx.Client(base_url=live.url, timeout=WAIT) as client,
        ThreadPoolExecutor() as pool,
    ):
        slow = pool.submit(client.post, "/tokenize", content=slowly(), headers={"Content-Type": "application/json"})
        try:
            assert begun.wait(WAIT)
            for _ in range(3):
                client.post("/tokenize", json={"prompt": "a"})
            assert not trimmed.acquire(timeout=1)
        finally:
            whole.set()
        assert slow.result().status_code == 200
        assert trimmed.acquire(timeout=WAIT)
        assert not trimmed.acquire(timeout=0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True, cwd=SOURCE)
    freed, trimmed = map(int, done.stdout.split())
    assert trimmed < freed / 2
