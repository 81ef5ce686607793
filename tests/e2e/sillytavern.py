"""SillyTavern's own server, unchanged, and ours for it to talk to. `make e2e` installs it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import httpx
import pytest

from tests.e2e.browser import INSTALLED, NODE
from tests.server.process import started
from tests.waiting import WAIT, free_port, until

TAVERN = INSTALLED / "sillytavern"

NEEDED = [
    pytest.mark.e2e,
    pytest.mark.skipif(NODE is None or not TAVERN.is_dir(), reason="SillyTavern is not installed: make e2e"),
]


@contextmanager
def sordino_at(folder: Path) -> Iterator[str]:
    """The address of `sordino serve` with the packaged soft prompts."""
    with resources.as_file(resources.files("sordino").joinpath("data", "prompts")) as prompts:
        shutil.copytree(prompts, folder / "library")
    env = {"XDG_CONFIG_HOME": str(folder / "config")}
    flags = ("--model", "smollm2", "--port", "0", "--library", str(folder / "library"))
    with started(*flags, env=env) as process:
        yield process.url()


@contextmanager
def tavern_at(folder: Path) -> Iterator[httpx.Client]:
    """A client of SillyTavern's own routes."""
    port = free_port()
    assert NODE is not None
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *(NODE, "server.js", "--port", str(port), "--disableCsrf", "--browserLaunchEnabled", "false"),
                *("--dataRoot", str(folder / "data"), "--configPath", str(folder / "config.yaml")),
            ],
            cwd=TAVERN,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT) as client:

                def answers() -> bool:
                    assert process.poll() is None, (folder / "log").read_text()[-3000:]
                    try:
                        return client.get("/").status_code == 200
                    except httpx.TransportError:
                        return False

                until(answers, "SillyTavern did not start")
                yield client
        finally:
            process.terminate()
            process.wait(30)
