"""Training from the page, in a real browser: texts that are dropped, a run, one that waits for it, and memory that runs out."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from tests.e2e.steps import NEEDED, WAIT, Server, drop, fitting, lamp, likeliest, shot
from tests.tiny_models import saved_tiny
from tests.waiting import until

pytestmark = NEEDED


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """With a tiny model, or with the one that a test names. Its runs are its test's."""
    model = getattr(request, "param", "") or str(saved_tiny(tmp_path / "tiny"))
    one = Server(tmp_path, "--model", model)
    yield one
    one.close()


TEXT = "The keeper wrote in the log that the lamp was clean, and that the wind had gone round to the west again. "
# Without other text between prompt and rows, which would take most of the time.
SMALL = {"steps": "20", "batch": "1", "row_tokens": "32", "context": "0", "evaluate_every": "5", "sample_every": "10"}
ENDLESS = {"steps": "100000", "evaluate_every": "100000", "sample_every": "100000", "patience": "0"}

# What a run that memory ended says, in the names of the page's fields.
_LOWER = (
    'lower "Most positions in one pass" (same result, less memory), then "Examples per step", "Longest example, tokens" '
    'or "Virtual tokens"'
)


def log(number: int, lines: int = 30) -> tuple[str, bytes]:
    return f"log-{number}.txt", "\n\n".join(f"{TEXT}{number} {line} ships passed." for line in range(lines)).encode()


def fill(page: Page, **more: str) -> None:
    """Settings of a run that takes seconds."""
    page.locator("#train-form summary", has_text="More settings").evaluate("one => { one.parentElement.open = true; }")
    for name, value in {**SMALL, **more}.items():
        page.locator(f"[name=train-{name}]").fill(value)
        page.locator(f"[name=train-{name}]").press("Tab")


def begin(page: Page, name: str, texts: Sequence[tuple[str, bytes]], **more: str) -> Locator:
    """Drop texts and train, before it is known what they cost: the run's page."""
    drop(page.locator("#train"), texts)
    expect(page.get_by_role("button", name="Train", exact=True)).to_be_enabled()
    fill(page, **more)
    page.locator("#train-name").fill(name)
    page.get_by_role("button", name="Train", exact=True).click()
    return page.get_by_role("article", name=f"Run {name}", exact=True)


def opened(page: Page, name: str) -> Locator:
    """A run of the list, opened."""
    page.locator("#runs").get_by_role("link", name=name).click()
    return page.get_by_role("article", name=f"Run {name}", exact=True)


@contextmanager
def suspended(server: Server, name: str) -> Iterator[None]:
    """The process of this run stands still: what the page shows of it lasts."""
    jobs = [json.loads(path.read_bytes()) for path in server.training.glob("*/job.json")]
    (process,) = [psutil.Process(job["pid"]) for job in jobs if job.get("name") == name]
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def action(run: Locator, name: str) -> None:
    """What is in a run's menu."""
    run.get_by_role("button", name="Actions").click()
    run.get_by_role("button", name=name).click()


@pytest.mark.parametrize("server", ["smollm2"], indirect=True)
def test_training(server: Server, page: Page, tmp_path: Path) -> None:
    lamp(page, "blue")
    page.get_by_role("link", name="Train", exact=True).click()
    fitting(page)
    for number in range(3):
        name, content = log(number)
        (tmp_path / name).write_bytes(content)
    page.locator("#texts-drop input[multiple]").first.set_input_files([tmp_path / f"log-{n}.txt" for n in range(3)])
    # A reload keeps the texts.
    expect(page.locator("#texts-list")).to_contain_text("log-2.txt")
    page.reload()
    expect(page.locator("#texts-list")).to_contain_text("log-2.txt")
    page.locator("#train-name").fill("A <i>keeper</i>")
    # As by default: half of the steps have other text between prompt and rows.
    fill(page, context="0.5")
    expect(page.locator("#texts-are")).to_contain_text("pieces to train on", timeout=WAIT)
    expect(page.locator("#train-cost")).to_contain_text("20 steps of about", timeout=WAIT)
    shot(page, "train")
    page.get_by_role("button", name="Train", exact=True).click()
    # The view moves to the run, which has an address of its own.
    run = page.get_by_role("article", name="Run A <i>keeper</i>")
    expect(run).to_be_visible()
    expect(page.locator("#train-new")).to_be_hidden()
    assert re.search(r"#train/[0-9a-f]+$", page.url)
    # The curve moves, a sample appears; in the middle the page is loaded anew.
    until(lambda: any('"sample"' in one.read_text() for one in server.training.glob("*/*.run/metrics.jsonl")))
    with suspended(server, "A <i>keeper</i>"):
        expect(run.locator("polyline.first")).to_be_visible()
        page.reload()
        expect(run.locator(".sample").first).to_be_visible()
        expect(run.locator(".state")).to_contain_text(
            re.compile(r"step \d+ of 20 · \d+ tokens/s · (about .+ left|evaluating)|Measuring: .+ · \d+%")
        )
        shot(page, "training")
        fitting(page)
    # It has axes with a unit and a legend.
    for said in ("nats per token", "training, smoothed", "validation", "step"):
        expect(run.locator(".curve")).to_contain_text(said)
    expect(run.get_by_role("button", name="Try it")).to_be_visible(timeout=WAIT)
    assert run.locator("h2").inner_text() == "A <i>keeper</i>"
    # The verdict of the report, in the same words.
    first = run.locator(".first-verdict")
    expect(first).to_contain_text("vectors")
    verdict = first.inner_text()
    fitting(page)
    shot(page, "trained")
    # Another run may begin from it, as thorough as is asked for.
    address = page.url
    action(run, "Continue with more data")
    expect(page.locator("#train-from")).to_have_text("A <i>keeper</i>")
    page.get_by_label("Effort").select_option("Best: all that the texts give")
    expect(page.locator("[name=train-steps]")).to_have_value("400")
    page.goto(address)
    with page.expect_popup() as report:
        run.get_by_role("link", name="Report").click()
    expect(report.value.locator("body")).to_contain_text("A <i>keeper</i>")
    expect(report.value.locator("body")).to_contain_text(verdict)
    report.value.close()
    with page.expect_download() as download:
        run.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename.endswith(".zip")
    run.get_by_role("button", name="Add to library").click()
    expect(run.locator(".run-status")).to_contain_text("In the library as")
    run.get_by_role("button", name="Try it").click()
    lamp(page, "green")
    page.locator("#story").fill("The wind")
    likeliest(page)
    page.get_by_role("button", name="Continue").click()
    page.wait_for_function("() => document.querySelector('#story').value.length > 30", timeout=WAIT)


def test_texts_are_dropped_and_pasted(page: Page) -> None:
    lamp(page, "blue")
    page.get_by_role("link", name="Train", exact=True).click()
    drop(page.locator("#train"), [log(0), log(1)])
    expect(page.locator("#texts-list li")).to_have_text(["log-0.txt", "log-1.txt"])
    page.get_by_text("Paste text").click()
    page.locator("#paste").fill(TEXT)
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("#texts-list")).to_contain_text("pasted-1.txt")
    drop(page.locator("#train"), [("latin.txt", b"na\xefve " * 999)])
    expect(page.locator("#train-cost")).to_contain_text("latin.txt, byte 2 (0xef): the text is not UTF-8", timeout=WAIT)
    expect(page.get_by_role("button", name="Train", exact=True)).to_be_disabled()
    # The one bad text is taken out again, and the others can be trained on.
    fill(page)
    page.get_by_role("button", name="Remove latin.txt").click()
    expect(page.locator("#texts-list li")).to_have_text(["log-0.txt", "log-1.txt", "pasted-1.txt"])
    expect(page.locator("#train-cost")).to_contain_text("steps of about", timeout=WAIT)
    expect(page.get_by_role("button", name="Train", exact=True)).to_be_enabled()
    for name in ("log-0.txt", "log-1.txt", "pasted-1.txt"):
        page.get_by_role("button", name=f"Remove {name}").click()
    expect(page.locator("#texts-are")).to_be_hidden()
    expect(page.get_by_role("button", name="Train", exact=True)).to_be_disabled()


def test_a_folder_is_chosen(page: Page, tmp_path: Path) -> None:
    """By the field that a folder's button belongs to: its files keep their places in the folder."""
    lamp(page, "blue")
    page.get_by_role("link", name="Train", exact=True).click()
    inner = tmp_path / "letters" / "1890"
    inner.mkdir(parents=True)
    for place, number in ((inner.parent, 0), (inner.parent, 1), (inner, 2)):
        name, content = log(number)
        (place / name).write_bytes(content)
    page.locator("#texts-drop input[webkitdirectory]").set_input_files(inner.parent)
    told = page.locator("#texts-list li")
    expect(told).to_have_text(["letters/1890/log-2.txt", "letters/log-0.txt", "letters/log-1.txt"])
    expect(page.locator("#train-name")).to_have_value("letters")
    fill(page)
    expect(page.locator("#train-cost")).to_contain_text("20 steps of about", timeout=WAIT)
    expect(page.locator("#texts-are")).to_contain_text("pieces to train on")
    fitting(page)
    page.get_by_role("button", name="Remove letters/1890/log-2.txt").click()
    expect(told).to_have_text(["letters/log-0.txt", "letters/log-1.txt"])


def test_a_second_run_waits_for_the_first(server: Server, page: Page) -> None:
    lamp(page, "blue")
    page.get_by_role("link", name="Train", exact=True).click()
    first = begin(page, "first", [log(0), log(1), log(2)], **ENDLESS)
    expect(first.locator(".state")).to_contain_text("Training · step", timeout=WAIT)
    page.get_by_role("link", name="New soft prompt").click()
    # Texts that are dropped while the server is still asked to train are another run's.
    held: list[Route] = []
    page.route("**/ui/jobs/*/train", lambda route: held.append(route))
    begin(page, "second", [log(3), log(4), log(5)], steps="5")
    drop(page.locator("#train"), [log(6)])
    expect(page.locator("#texts-list li")).to_have_text(["log-6.txt"])
    held[0].continue_()
    page.unroute("**/ui/jobs/*/train")
    # They stay in view: where the other run is, is said.
    expect(page.locator("#toasts")).to_contain_text("second is in the queue.")
    third = begin(page, "third", [log(7), log(8)], steps="5")
    expect(third.locator(".state")).to_have_text("Queued", timeout=WAIT)
    states = page.locator("#runs small")
    expect(states).to_have_text(["Queued", "Queued", "Training"])
    shot(page, "queue")
    # One is taken out; the other's turn comes when the first is stopped, which can go on after it.
    third.get_by_role("button", name="Remove from the queue").click()
    expect(states).to_have_text(["Stopped", "Queued", "Training"])
    opened(page, "first").get_by_role("button", name="Stop", exact=True).click()
    expect(first.locator(".state")).to_contain_text("Stopped · step", timeout=WAIT)
    expect(states.nth(1)).not_to_have_text("Queued", timeout=WAIT)
    with suspended(server, "second"):
        first.get_by_role("button", name="Resume").click()
        expect(first.locator(".state")).to_contain_text("Queued")
    second = opened(page, "second")
    expect(second.get_by_role("button", name="Try it")).to_be_visible(timeout=WAIT)
    opened(page, "first")
    expect(first.locator(".state")).to_contain_text("Training · step", timeout=WAIT)
    first.get_by_role("button", name="Stop", exact=True).click()
    expect(first.locator(".state")).to_contain_text("Stopped", timeout=WAIT)
    # One that is gone says so, at its address too.
    action(first, "Delete")
    first.get_by_role("button", name="Really delete?").click()
    expect(page.locator("#train-new")).to_be_visible()
    page.go_back()
    expect(page.locator("#run")).to_contain_text("This run is gone")


# Enough to serve the tiny model and to train on it, but not with all texts in one pass: those take more than this.
_MEMORY = 3 << 30


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit of memory that processes inherit is Linux's")
def test_a_run_that_memory_ends_says_what_to_lower(
    chromium: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ends that memory brings: the system kills the process, or refuses what it asks for."""
    # What threads and drivers reserve for themselves counts too, and differs between machines.
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    server = Server(tmp_path, "--model", str(saved_tiny(tmp_path / "tiny")), "--kv-memory", "64", memory=_MEMORY)
    try:
        page = chromium.new_page(viewport={"width": 1100, "height": 900})
        page.goto(server.url)
        lamp(page, "blue")
        page.get_by_role("link", name="Train", exact=True).click()
        texts = [log(number, lines=1600) for number in range(4)]
        run = begin(page, "taken", texts, tokens="4", **ENDLESS)
        expect(run.locator(".state")).to_contain_text("Training", timeout=WAIT)
        [job] = server.training.glob("*/job.json")
        os.kill(json.loads(job.read_text())["pid"], signal.SIGKILL)
        expect(run.locator(".state")).to_contain_text("Failed", timeout=WAIT)
        expect(run).to_contain_text("killed from outside, most likely because the machine's memory ran out: lower")
        expect(run).to_contain_text(_LOWER)
        # The same texts again, with far more in one pass than fits. Train is pressed before that is measured.
        action(run, "Train again with other settings")
        expect(page.locator("#train-name")).to_have_value("taken")
        expect(page.locator("[name=train-steps]")).to_have_value("100000")
        expect(page.locator("#train-cost")).to_contain_text("100000 steps of about", timeout=WAIT)
        page.locator("#train-name").fill("large")
        fill(page, batch="20000", row_tokens="128", pass_tokens="10000000", tokens="4")
        page.get_by_role("button", name="Train", exact=True).click()
        run = page.get_by_role("article", name="Run large", exact=True)
        expect(run.locator(".state")).to_contain_text("Failed", timeout=WAIT)
        expect(run).to_contain_text("memory ran out in")
        expect(run).to_contain_text(_LOWER)
        fitting(page)
        shot(page, "out-of-memory")
        # Each of these is a setting that the page has, by this very name.
        for label in ("Most positions in one pass", "Examples per step", "Longest example, tokens", "Virtual tokens"):
            expect(page.locator("#train-form label", has_text=label)).to_have_count(1)
        # Measured in peace, it is said before anything is begun; and what was said helps.
        action(run, "Train again with other settings")
        expect(page.locator("#train-cost")).to_contain_text("memory ran out in", timeout=WAIT)
        expect(page.locator("#train-cost")).to_contain_text(_LOWER)
        expect(page.get_by_role("button", name="Train", exact=True)).to_be_disabled()
        for name, value in (("pass_tokens", "1024"), ("batch", "4")):
            page.locator(f"[name=train-{name}]").fill(value)
            page.locator(f"[name=train-{name}]").press("Tab")
        expect(page.locator("#train-cost")).to_contain_text("20 steps of about", timeout=WAIT)
        expect(page.get_by_role("button", name="Train", exact=True)).to_be_enabled()
        # The server is as it was, and writes.
        page.get_by_role("link", name="Write", exact=True).click()
        page.locator("#story").fill("The wind")
        likeliest(page)
        page.get_by_role("button", name="Continue").click()
        page.wait_for_function("() => document.querySelector('#story').value.length > 12", timeout=WAIT)
        page.close()
    finally:
        server.close()
