"""The page as it looks: the top line, Write and Train against golden pictures in tests/golden/page.

The lamp grey, blue and green; Write; the form of Train and a run that is done. Nothing in them was written by the model or
measured by the machine: the story is typed, the run is laid into the folder of runs. Compared are means over squares of 8 x 8
pixels, each colour by itself: edges of letters may be drawn otherwise, but of the squares at most one in 500 may differ by more
than 24 of 255. The fonts are not the machine's: on Linux the tests' browser is given those that come with matplotlib (DejaVu), so
the pictures are compared on every machine that has a Chromium, also a fresh one without a single font. Elsewhere browsers take
no such configuration, and the pictures are not compared.

    SORDINO_GOLDEN=write pytest -m e2e tests/e2e/test_page_pictures.py        draws them anew: look at them before you commit
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from tests.e2e.steps import NEEDED, Server, choose, lamp

pytestmark = [*NEEDED, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fonts are given on Linux only")]

GOLDEN = Path(__file__).parents[1] / "golden" / "page"
SQUARE, DIFFERENT, AT_MOST = 8, 24, 1 / 500
STORY = (
    "Wind NW by N, six and rising. The boat did not come.\n\n"
    "I trimmed the lamp at four and sat by it until the bread was done. A gull has taken to the east window, and looks in "
    "as a clerk looks in who has been told to wait.\n"
)
KEEPER = resources.files("sordino").joinpath("data", "prompts", "keeper.zip")

_WIDTHS = """() => ["system-ui", "Georgia"].map((family) => {
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = `40px ${family}`;
    return Math.round(pen.measureText("The quick brown fox jumps over the lazy dog.").width);
})"""


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Server]:
    """A server without a model, with a run that was done earlier."""
    server = Server(tmp_path)
    _lay_run(server.training / "0a")
    yield server
    server.close()


def test_its_places_look_as_they_did(bare: Server, chromium: Browser, tmp_path: Path) -> None:
    page = chromium.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
    page.goto(bare.url)
    _with_the_same_fonts(page)
    lamp(page, "grey")
    _as_it_was(page.locator("#top"), "lamp-grey", tmp_path)
    httpx.post(f"{bare.url}/ui/models", json={"name": "smollm2"}).raise_for_status()
    lamp(page, "blue")
    # The message that it is loaded would lie over what is drawn next.
    page.locator("#toasts").get_by_role("button", name="Close").click()
    _as_it_was(page.locator("#top"), "lamp-blue", tmp_path)
    shutil.copy(str(KEEPER), bare.library / "keeper.zip")
    expect(page.locator("#choices input")).to_have_count(2)
    choose(page, "keeper")
    lamp(page, "green")
    _as_it_was(page.locator("#top"), "lamp-green", tmp_path)
    page.locator("#title").fill("The east window")
    page.locator("#story").fill(STORY)
    expect(page.locator("#saved")).to_have_text("saved")
    expect(page.locator("#meter")).to_contain_text("+ 20 of the soft prompt + 80 to write, of 8192")
    # Of the list of stories, which says how long ago they were changed.
    _as_it_was(page.locator("#desk"), "write", tmp_path)
    page.get_by_role("link", name="Train", exact=True).click()
    page.locator("#runs a").click()
    expect(page.locator("#run polyline.second").first).to_be_visible()
    _as_it_was(page.locator("#run .columns"), "train-done", tmp_path)
    page.get_by_role("link", name="New soft prompt").click()
    _as_it_was(page.locator("#train-form"), "train", tmp_path)
    page.close()


def _lay_run(place: Path) -> None:
    """As training/queue.py keeps a run that is done."""
    folder = place / "voice.run"
    folder.mkdir(parents=True)
    job = {"name": "Keeper's log", "model": "smollm2", "created": 0.0, "flags": [], "asked": "train"}
    (place / "job.json").write_text(json.dumps(job))
    shutil.copy(str(KEEPER), place / "voice.zip")
    (folder / "settings.json").write_text(json.dumps({"config": {"steps": 20}}))
    (folder / "report.html").write_text("<p>The report</p>")
    events = []
    for step in range(1, 21):
        events.append(
            {"kind": "step", "step": step, "loss": 4 + (step * 7 % 5) / 10 - step / 25, "seconds": 1, "tokens": 90}
        )
        if step % 10 == 0:
            events.append({"kind": "validation", "step": step, "loss": 4.4 - step / 40})
            events.append(
                {"kind": "sample", "step": step, "prompt": "The boat", "text": " did not come, and I wrote it."}
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def _with_the_same_fonts(page: Page) -> None:
    widths, known = page.evaluate(_WIDTHS), GOLDEN / "fonts.json"
    if os.environ.get("SORDINO_GOLDEN") == "write":
        GOLDEN.mkdir(parents=True, exist_ok=True)
        known.write_text(json.dumps(widths) + "\n")
    assert widths == json.loads(known.read_text()), "the browser did not take the fonts that it was given"


def _as_it_was(part: Locator, name: str, folder: Path) -> None:
    """`part` looks as its golden picture does."""
    # Nothing is pointed at, and nothing has the focus.
    part.page.mouse.move(0, 899)
    part.page.evaluate("() => document.activeElement?.blur()")
    drawn, golden = part.screenshot(animations="disabled"), GOLDEN / f"{name}.png"
    if os.environ.get("SORDINO_GOLDEN") == "write":
        golden.write_bytes(drawn)
    now, then = (_squares(picture) for picture in (drawn, golden.read_bytes()))
    assert now.shape == then.shape, f"{name}: its size was {then.shape} squares and is {now.shape}"
    other = float((np.abs(now - then).max(axis=-1) > DIFFERENT).mean())
    if other > AT_MOST:
        (folder / f"{name}.png").write_bytes(drawn)
    assert other <= AT_MOST, f"{other:.1%} of {name}'s squares look otherwise: {folder / name}.png beside {golden}"


def _squares(picture: bytes) -> np.ndarray:
    """Mean colours, [rows, columns, 3]; what is left of a square at the right and below is left out."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=np.float32)
    high, wide = (size // SQUARE for size in pixels.shape[:2])
    return pixels[: high * SQUARE, : wide * SQUARE].reshape(high, SQUARE, wide, SQUARE, 3).mean(axis=(1, 3))
