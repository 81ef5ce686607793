"""Debian's Chromium, or whichever is here, driven by Playwright."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
INSTALLED = Path(os.environ.get("SORDINO_E2E", Path(__file__).parents[2] / ".e2e")) / "node_modules"
AXE = INSTALLED / "axe-core" / "axe.min.js"
NODE = shutil.which("node")
# As root, without a GPU, and with nobody to call at home.
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


# The fonts that come with matplotlib, and no others: pages look, and their lines break, alike on every Linux.
_FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig>
  <dir>{fonts}</dir>
  <cachedir>{cache}</cachedir>
  <match target="pattern"><edit name="family" mode="append_last"><string>DejaVu Sans</string></edit></match>
  {aliases}
  <match target="font">
    <edit name="antialias" mode="assign"><bool>true</bool></edit>
    <edit name="hinting" mode="assign"><bool>true</bool></edit>
    <edit name="hintstyle" mode="assign"><const>hintslight</const></edit>
    <edit name="rgba" mode="assign"><const>none</const></edit>
  </match>
</fontconfig>
"""
# What the page asks for, and what Chromium asks for where a page says serif or monospace.
_ALIASES = {
    "system-ui": "DejaVu Sans", "sans-serif": "DejaVu Sans", "Georgia": "DejaVu Serif", "serif": "DejaVu Serif",
    "Times New Roman": "DejaVu Serif", "ui-monospace": "DejaVu Sans Mono", "monospace": "DejaVu Sans Mono",
}  # fmt: skip


@contextmanager
def browser() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        env = {**os.environ, "FONTCONFIG_FILE": str(_fonts(Path(folder)))}
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS), env=env)
        try:
            yield one
        finally:
            one.close()


def _fonts(folder: Path) -> Path:
    """A configuration of fontconfig."""
    aliases = "".join(
        f'<alias binding="same"><family>{family}</family><prefer><family>{ours}</family></prefer></alias>'
        for family, ours in _ALIASES.items()
    )
    path = folder / "fonts.conf"
    path.write_text(
        _FONTS.format(fonts=Path(matplotlib.get_data_path()) / "fonts" / "ttf", cache=folder / "cache", aliases=aliases)
    )
    return path


# A text that is still fading in has too little contrast. What never ends, as a spinner, is shown like that all the time.
_SETTLED = """() => Promise.allSettled(
    document.getAnimations().filter((one) => one.effect?.getComputedTiming().endTime !== Infinity).map((one) => one.finished)
)"""


def faults(page: Page) -> list[Any]:
    """What axe-core finds serious or critical on the page, once what is moving has arrived."""
    page.evaluate(_SETTLED)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("() => axe.run()")
    return [
        (one["id"], [node["target"] for node in one["nodes"]])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
