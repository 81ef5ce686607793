"""How fast the page is and what it costs, in a real Chromium: the first view, a token's way to the screen, typing, ten open tabs.

First view: from opening the address of a ready server until Continue can be pressed, a fresh browser each time.
A token's way: from the end of the engine's step to the first frame of the browser that shows it; both clocks are this machine's.
Typing: from a key to the end of the frame that shows it, at the end of a story of 2 MB, beside an idle server.
Ten tabs: tokens a second of 4 streams over the API while ten tabs of one window are open, against none.
A training run: the same work beside a run that the page started, against none; this has no target.

    python -m benchmarks.page --rounds 5        (needs Chromium, and `make e2e` for playwright)
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn

from benchmarks.measuring import arguments, paired_ratio, save
from sordino.engine.config import EngineOptions
from sordino.engine.requests import Chunk
from sordino.engine.runners.build import embedded, torch_runner
from sordino.engine.waiting import in_thread_of_its_own
from sordino.library.library import Library
from sordino.models.base_model import load
from sordino.server.addresses import Access
from sordino.server.app import create_app
from sordino.server.metrics import ServerMetrics
from sordino.server.page.app import Page
from sordino.server.prompts import ServedPrompts
from sordino.server.serving import Idle, ServerLimits, Serving
from sordino.server.start import Models, opened
from tests.e2e.browser import browser
from tests.e2e.steps import PASTE, WATCH_KEYS, new_tokens

TABS, STREAMS, NEW, TOKENS, KEYS = 10, 4, 48, 60, 100
PARAGRAPH = (
    "The keeper wrote in the log that the lamp was clean, and that the wind had gone round to the west again. " * 8
)
# The length of the story at each picture, with the time of the first that had it.
WATCH = """() => {
    window.seen = [];
    const field = document.querySelector("#story");
    const look = () => {
        if (field.value.length !== window.seen.at(-1)?.[1]) window.seen.push([Date.now() / 1000, field.value.length]);
        requestAnimationFrame(look);
    };
    look();
}"""


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, served(options.model, Path(folder)) as (url, serving):
        views = [first_view(url) for _ in range(options.rounds)]
        rows.append(
            {"rows": "first view", "seconds": round(statistics.median(views), 2), "slowest": round(max(views), 2)}
        )
        delays = [1000 * delay for _ in range(options.rounds) for delay in token_delays(url, serving)]
        rows.append({"rows": "a token's way to the screen", **spread(delays)})
        keys = [delay for _ in range(options.rounds) for delay in key_delays(url)]
        rows.append({"rows": "a key's way to the screen, story of 2 MB", **spread(keys)})
        none, ten = with_tabs(url, serving.model, options.rounds)
        row = {"rows": f"{TABS} tabs open", "ten/none": round(paired_ratio(none, ten), 3)}
        for name, taken in (("none", none), ("ten", ten)):
            row[f"{name}, tokens/s"] = round(STREAMS * NEW / statistics.median(taken), 1)
        rows.append(row)
        alone, beside, steps = with_training(url, serving.model, options.rounds)
        rows.append(
            {
                "rows": "a training run beside it",
                "beside/alone": round(paired_ratio(alone, beside), 3),
                "alone, tokens/s": round(STREAMS * NEW / statistics.median(alone), 1),
                "beside, tokens/s": round(STREAMS * NEW / statistics.median(beside), 1),
                "steps a minute meanwhile": round(steps, 1),
            }
        )
    save("page", torch.device("cpu"), rows)


@contextmanager
def served(name: str, folder: Path) -> Iterator[tuple[str, Serving]]:
    """The server in this process, so that the engine's steps can be timed."""
    base = in_thread_of_its_own(lambda: load(name, device="cpu", dtype="float32"))
    options, library, metrics = (
        EngineOptions(kv_memory=1024, runner="torch"),
        Library([folder / "library"]),
        ServerMetrics(),
    )
    idle = Idle(ServedPrompts(None, library), metrics, ServerLimits())

    def open_(_: str) -> Any:
        runner = in_thread_of_its_own(lambda: torch_runner(base, options))
        backend = embedded(runner, options)
        return opened(base, backend, library, defaults=folder / "defaults.json", metrics=metrics)

    with closing(Models(open_)) as models, closing(Page(models, idle, options, folder=folder / "data")) as page:
        serving = models.first(name)
        page.start()
        config = uvicorn.Config(
            create_app(serving, Access(), models=models, page=page.add), port=0, log_level="warning", lifespan="off"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", serving
        server.should_exit = True
        thread.join()


def first_view(url: str) -> float:
    with browser() as one:
        page = one.new_page()
        began = time.perf_counter()
        page.goto(url)
        page.locator("#go:enabled").wait_for()
        return time.perf_counter() - began


def token_delays(url: str, serving: Serving) -> list[float]:
    """Seconds for each token of one continuation."""
    engine = serving.backend._engine
    step, made = engine.step, []

    def stamped() -> Any:
        events = step()
        made.extend((time.time(), len(event.text)) for _, event in events if isinstance(event, Chunk) and event.text)
        return events

    with browser() as one:
        page = one.new_page()
        page.goto(url)
        page.locator("#go:enabled").wait_for()
        page.locator("#story").fill("The keeper wrote in the log that the")
        new_tokens(page, TOKENS)
        page.evaluate(WATCH)
        length = len(page.locator("#story").input_value())
        engine.step = stamped  # type: ignore[method-assign]
        try:
            page.locator("#go").click()
            page.locator("#stop:enabled").wait_for()
            page.locator("#go:enabled").wait_for(timeout=60_000)
        finally:
            engine.step = step  # type: ignore[method-assign]
        seen = page.evaluate("() => window.seen")
    delays = []
    for at, more in made:
        length += more
        delays.append(next(shown for shown, size in seen if size >= length) - at)
    return delays


def key_delays(url: str) -> list[float]:
    """Milliseconds for each of KEYS keys, ten a second."""
    with browser() as one:
        page = one.new_page()
        page.goto(url)
        page.locator("#go:enabled").wait_for()
        page.evaluate(PASTE, "\n".join([PARAGRAPH] * (2_000_000 // len(PARAGRAPH))))
        page.locator("#saved", has_text="saved").wait_for()
        page.evaluate(WATCH_KEYS)
        for number in range(KEYS):
            page.keyboard.press("the wind "[number % 9])
            page.wait_for_timeout(100)
        took: list[float] = page.evaluate("() => window.took")
    return took


def spread(delays: list[float]) -> dict[str, float]:
    """Of milliseconds."""
    ordered = sorted(delays)
    return {
        "median, ms": round(statistics.median(ordered), 1),
        "95 of 100, ms": round(ordered[int(0.95 * len(ordered))], 1),
        "slowest, ms": round(ordered[-1], 1),
    }


def with_tabs(url: str, model: str, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of the same work without and with ten tabs of one window."""
    none, ten = [], []
    with browser() as one:
        work(url, model)
        for _ in range(rounds):
            none.append(work(url, model))
            context = one.new_context()
            for _ in range(TABS):
                context.new_page().goto(url)
            for page in context.pages:
                page.locator("#go:enabled").wait_for()
            time.sleep(1)
            ten.append(work(url, model))
            context.close()
            time.sleep(1)
    return none, ten


def with_training(url: str, model: str, rounds: int) -> tuple[list[float], list[float], float]:
    """Seconds of the same work without and with a training run beside it, and the steps a minute that the run took."""
    text = "The keeper wrote in the log that the lamp was clean, and that the wind had gone round to the west again. "
    files = [("files", (f"{number}.txt", f"{number}. {text * 60}".encode())) for number in range(3)]
    run = httpx.post(f"{url}/ui/texts", files=files, timeout=60).raise_for_status().json()["id"]
    jobs = f"{url}/ui/jobs/{run}"
    settings = {"name": "beside", "steps": 100_000, "evaluate_every": 100_000, "sample_every": 100_000}
    work(url, model)
    alone = [work(url, model) for _ in range(rounds)]
    httpx.post(f"{jobs}/train", json={"settings": settings}, timeout=60).raise_for_status()

    def steps() -> int:
        job = httpx.get(jobs, timeout=60).raise_for_status().json()
        if job["state"] not in ("waiting", "running"):
            raise RuntimeError(f"the run is {job['state']}: {job['error']}")
        return sum(event["kind"] == "step" for event in job["events"])

    try:
        while steps() < 2:
            time.sleep(0.5)
        before, began = steps(), time.perf_counter()
        beside = [work(url, model) for _ in range(rounds)]
        taken = (steps() - before) / (time.perf_counter() - began)
    finally:
        httpx.post(f"{jobs}/stop", timeout=60)
        while httpx.get(jobs, timeout=60).json()["state"] in ("running", "stopping"):
            time.sleep(0.5)
    return alone, beside, 60 * taken


def work(url: str, model: str) -> float:
    def ask(number: int) -> None:
        body = {"model": model, "prompt": f"On day {number} the keeper", "max_tokens": NEW, "temperature": 0}
        httpx.post(f"{url}/v1/completions", json=body, timeout=300).raise_for_status()

    began = time.perf_counter()
    with ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(ask, range(STREAMS)))
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
