"""What the tests of the page have in common: its server, the lamp, what holds for every view, pictures."""

from __future__ import annotations

import io
import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from sordino.models.cache import cache_folder
from tests.e2e.browser import AXE, CHROMIUM, faults
from tests.server.process import Process, started

NEEDED = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed: make e2e"),
]


# Milliseconds for what the model writes, or a training run does. They take a second or two where nobody else wants the machine;
# beside other work, and a run gives way to all of it, minutes. A wait ends as soon as what it is for is there, so a long one
# lets nothing through that a short one would not: how quick the page is, others measure.
WAIT = 240_000


class Server:
    """`sordino serve`, which a test may stop and start again at the same address.

    The library is where a user has it, in a home of the test's own: pictures show that. The cache of models is the user's.
    memory: bytes that the server, and each process that it starts, may have.
    """

    def __init__(self, folder: Path, *flags: str, memory: int | None = None) -> None:
        home = folder / "home"
        self.library = home / ".local" / "share" / "sordino" / "soft_prompts"
        self.library.mkdir(parents=True)
        self.training = folder / "config" / "sordino" / "training"
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        self._env = {
            "XDG_CONFIG_HOME": str(folder / "config"),
            "HOME": str(home),
            "XDG_CACHE_HOME": cache,
            "SORDINO_CACHE": str(cache_folder()),
        }
        self._flags = ("--library", str(self.library), "--runner", "torch", *flags)
        self._memory = memory
        self._stack = started(*self._flags, "--port", "0", env=self._env, memory=memory)
        self.process: Process = self._stack.__enter__()
        self.url = self.process.url()

    def kill(self) -> None:
        self.process.process.send_signal(signal.SIGKILL)
        self._stack.__exit__(None, None, None)

    def again(self) -> None:
        port = self.url.rpartition(":")[2]
        self._stack = started(*self._flags, "--port", port, env=self._env, memory=self._memory)
        self.process = self._stack.__enter__()
        self.process.url()

    def close(self) -> None:
        self._stack.__exit__(None, None, None)
        # Runs outlive their server; one that a failed test left would take the machine from the tests behind it.
        for path in self.training.glob("*/job.json"):
            if pid := json.loads(path.read_bytes()).get("pid"):
                with suppress(psutil.Error):
                    psutil.Process(pid).kill()


def shot(page: Page, name: str) -> None:
    if folder := os.environ.get("SORDINO_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def lamp(page: Page, kind: str, seconds: float = 10) -> None:
    """The lamp is of this kind within so many seconds, and of this colour on the screen."""
    expect(page.locator("#lamp")).to_have_attribute("data-kind", kind, timeout=1000 * seconds)
    picture = Image.open(io.BytesIO(page.locator("#lamp").screenshot())).convert("RGB")
    red, green, blue = picture.getpixel((picture.width // 2, picture.height // 2))
    seen = "grey" if max(red, green, blue) - min(red, green, blue) < 20 else "green" if green > blue else "blue"
    assert seen == kind


def fitting(page: Page) -> None:
    """Nothing is wider than the window, and axe finds nothing serious."""
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    assert faults(page) == []


def likeliest(page: Page) -> None:
    """No chance in what is written: what is drawn at random ends after a few words now and then."""
    page.get_by_label("Style").select_option("Always the likeliest")
