"""Every answer that is sent while it is made tells proxies to pass it on at once."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.server.running import running

STREAMS = {
    "/v1/completions": {"model": "tiny-llama", "prompt": "a", "max_tokens": 2, "stream": True},
    "/v1/chat/completions": {"model": "tiny-llama", "messages": [{"role": "user", "content": "a"}], "stream": True},
    "/api/extra/generate/stream": {"prompt": "a", "max_length": 2},
    "/ui/ask": {"do": "measure", "id": 1, "text": "a"},
}


@pytest.mark.parametrize("path", STREAMS)
def test_no_proxy_collects_a_stream(tmp_path: Path, path: str) -> None:
    with running(tmp_path, with_page=True) as live:
        answer = httpx.post(f"{live.url}{path}", json=STREAMS[path], timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert answer.headers["Cache-Control"] == "no-store"
