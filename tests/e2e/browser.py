"""Debian's Chromium, or whichever is here, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
INSTALLED = Path(os.environ.get("SORDINO_E2E", Path(__file__).parents[2] / ".e2e")) / "node_modules"
AXE = INSTALLED / "axe-core" / "axe.min.js"
# As root, without a GPU, and with nobody to call at home.
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        try:
            yield one
        finally:
            one.close()


def faults(page: Page) -> list[Any]:
    """What axe-core finds serious or critical on the page as it is shown now."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("() => axe.run()")
    return [
        (one["id"], [node["target"] for node in one["nodes"]])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
