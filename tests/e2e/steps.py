"""What the tests of the page have in common: its server, the lamp, what holds for every view, pictures."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.e2e.browser import AXE, CHROMIUM, faults
from tests.server.process import Process, started

NEEDED = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed: make e2e"),
]


class Server:
    """`sordino serve`, which a test may stop and start again at the same address."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.library = folder / "library"
        self.library.mkdir()
        self.training = folder / "config" / "sordino" / "training"
        self._env = {"XDG_CONFIG_HOME": str(folder / "config")}
        self._flags = ("--library", str(self.library), "--runner", "torch", *flags)
        self._stack = started(*self._flags, "--port", "0", env=self._env)
        self.process: Process = self._stack.__enter__()
        self.url = self.process.url()

    def kill(self) -> None:
        self.process.process.send_signal(signal.SIGKILL)
        self._stack.__exit__(None, None, None)

    def again(self) -> None:
        port = self.url.rpartition(":")[2]
        self._stack = started(*self._flags, "--port", port, env=self._env)
        self.process = self._stack.__enter__()
        self.process.url()

    def close(self) -> None:
        self._stack.__exit__(None, None, None)


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
