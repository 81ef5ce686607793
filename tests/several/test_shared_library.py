"""Several servers of one library folder: what one of them changes, or somebody by hand, is there for all, whole."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from sordino import formats
from sordino.prompts.soft_prompt import SoftPrompt
from tests.server.process import started
from tests.server.running import voice
from tests.several.conftest import Pair
from tests.tiny_models import tiny_base
from tests.waiting import WAIT, until

pytestmark = pytest.mark.slow


def content(tmp_path: Path, seed: int, **metadata: Any) -> tuple[SoftPrompt, bytes]:
    prompt = voice(tiny_base("llama"), seed, **metadata)
    formats.write(prompt, tmp_path / f"{seed}.zip", force=True)
    return prompt, (tmp_path / f"{seed}.zip").read_bytes()


def install(url: str, name: str, data: bytes, **form: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/soft_prompts", files={"file": (f"{name}.zip", data)}, data=form, timeout=WAIT)


def listed(url: str) -> dict[str, dict[str, Any]]:
    return {card["id"]: card for card in httpx.get(f"{url}/v1/soft_prompts", timeout=WAIT).json()["data"]}


def test_what_one_server_changes_is_there_for_both(pair: Pair, tmp_path: Path) -> None:
    one, other = pair.urls
    assert install(one, "new", content(tmp_path, 5, description="first")[1]).status_code == 200
    until(lambda: "new" in listed(other))
    model = httpx.get(f"{other}/v1/models", timeout=WAIT).json()["data"][0]["id"]
    ask = {"model": f"{model}:new", "prompt": "a", "max_tokens": 8, "temperature": 0}
    first = httpx.post(f"{other}/v1/completions", json=ask, timeout=WAIT).json()["choices"][0]["text"]

    # Replaced: the next request of either has the new one.
    assert install(one, "new", content(tmp_path, 6, description="second")[1], replace=True).status_code == 200
    texts = [
        httpx.post(f"{url}/v1/completions", json=ask, timeout=WAIT).json()["choices"][0]["text"] for url in pair.urls
    ]
    assert texts[0] == texts[1] != first
    until(lambda: listed(other)["new"]["description"] == "second")

    assert httpx.delete(f"{other}/v1/soft_prompts/new", timeout=WAIT).status_code == 200
    until(lambda: "new" not in listed(one))
    assert httpx.post(f"{one}/v1/completions", json=ask, timeout=WAIT).status_code == 404


def test_what_is_done_by_hand_is_there_for_both(pair: Pair, tmp_path: Path) -> None:
    path = pair.library / "by hand.zip"
    path.write_bytes(content(tmp_path, 7)[1])
    for url in pair.urls:
        until(lambda url=url: listed(url).get("by hand", {}).get("n_tokens") == 4)
    path.unlink()
    for url in pair.urls:
        until(lambda url=url: "by hand" not in listed(url))


def test_one_of_many_installs_of_one_name_wins_and_the_others_hear_it(pair: Pair, tmp_path: Path) -> None:
    made = [content(tmp_path, 10 + number) for number in range(8)]
    start = threading.Barrier(len(made))

    def go(number: int) -> httpx.Response:
        start.wait(WAIT)
        return install(pair.urls[number % 2], "same", made[number][1])

    with ThreadPoolExecutor(len(made)) as pool:
        answers = list(pool.map(go, range(len(made))))
    won = [number for number, answer in enumerate(answers) if answer.status_code == 200]
    lost = [answer for answer in answers if answer.status_code != 200]
    assert len(won) == 1, [answer.text for answer in answers]
    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in lost} == {(400, "name_taken")}
    assert formats.read(pair.library / "same.zip").content_hash == made[won[0]][0].content_hash
    assert [path.name for path in pair.library.iterdir() if "same" in path.name or path.name.endswith(".tmp")] == [
        "same.zip"
    ]


def test_nobody_reads_half_of_what_is_being_replaced(pair: Pair, tmp_path: Path) -> None:
    made = [content(tmp_path, 20 + number)[1] for number in range(2)]
    assert install(pair.urls[0], "busy", made[0]).status_code == 200
    model = httpx.get(f"{pair.urls[1]}/v1/models", timeout=WAIT).json()["data"][0]["id"]
    replaced = threading.Event()

    def replace() -> None:
        for number in range(30):
            assert install(pair.urls[0], "busy", made[number % 2], replace=True).status_code == 200
        replaced.set()

    ask = {"model": f"{model}:busy", "prompt": "a", "max_tokens": 1}
    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(replace)
        while not replacing.done():
            assert httpx.post(f"{pair.urls[1]}/v1/completions", json=ask, timeout=WAIT).status_code == 200
            assert [card for card in listed(pair.urls[1]).values() if "error" in card] == []
        replacing.result()
    assert replaced.is_set()


def test_what_a_killed_server_said_was_installed_is_there(pair: Pair, tmp_path: Path) -> None:
    """And what it had not said is there whole, or not at all."""
    made = [content(tmp_path, 40 + number) for number in range(40)]
    said: dict[str, str] = {}
    with started(*pair.flags, "--no-ui", env=pair.env) as third:
        url, enough = third.url(), threading.Semaphore(0)

        def install_some(numbers: range) -> None:
            for number in numbers:
                try:
                    answer = install(url, f"killed {number}", made[number][1])
                except httpx.TransportError:
                    return
                if answer.status_code == 200:
                    said[f"killed {number}"] = made[number][0].content_hash
                    enough.release()

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(install_some, range(first, 40, 4)) for first in range(4)]
            for _ in range(8):
                assert enough.acquire(timeout=WAIT)
            third.process.kill()
            for one in running:
                one.result()
    assert len(said) >= 8
    for url in pair.urls:
        until(lambda url=url: set(said) <= set(listed(url)))
        assert [card for card in listed(url).values() if "error" in card] == []
    found = {name: formats.read(pair.library / f"{name}.zip").content_hash for name in said}
    assert found == said
