"""The memory that the list of models says a model needs is what the server's process takes."""

from __future__ import annotations

from pathlib import Path

import httpx
import psutil
import pytest

from tests.server.process import started
from tests.waiting import until


def needed(url: str, name: str) -> int:
    choices = httpx.get(f"{url}/ui/models", timeout=60).json()["choices"]
    return next(int(one["needed"]) for one in choices if one["name"] == name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
@pytest.mark.parametrize("flags", [("--rows", "4"), ("--kv-memory", "300")], ids=["rows of their own", "one pool"])
def test_a_model_takes_what_was_said(name: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    """It was 0.7 GB for what took 4: llama.cpp allocates the cells of all rows at once."""
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    with started("--library", str(tmp_path), "--port", "0", "--runner", "gguf", *flags, env=env) as server:
        url = server.url()
        said = needed(url, name)
        httpx.post(f"{url}/ui/models", json={"name": name}).raise_for_status()
        until(lambda: httpx.get(f"{url}/ui/models", timeout=60).json()["current"] == name)
        taken = psutil.Process(server.process.pid).memory_info().rss
        assert said == pytest.approx(taken, rel=0.15), (said, taken)
        # While it is in use, what it takes is known.
        assert needed(url, name) == pytest.approx(taken, rel=0.15)
