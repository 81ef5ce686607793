"""Stories as the server keeps them: what the model wrote in them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.server.running import running


def test_a_story_keeps_which_parts_the_model_wrote(tmp_path: Path) -> None:
    with running(tmp_path, with_page=True) as server:
        url = f"{server.url}/ui/stories/one"
        httpx.put(url, json={"text": "It rained. Then", "generated": [[2, 9], [11, 15]]}).raise_for_status()
        assert httpx.get(url).json()["generated"] == [[2, 9], [11, 15]]
        # One from before has none.
        httpx.put(f"{server.url}/ui/stories/two", json={"text": "It rained."}).raise_for_status()
        assert httpx.get(f"{server.url}/ui/stories/two").json()["generated"] == []


@pytest.mark.parametrize("generated", [[[1]], [[1, 2, 3]], [[-1, 2]], [["a", 2]], "all"])
def test_what_is_no_range_is_refused(tmp_path: Path, generated: object) -> None:
    with running(tmp_path, with_page=True) as server:
        answer = httpx.put(f"{server.url}/ui/stories/one", json={"text": "It rained.", "generated": generated})
        assert answer.status_code == 400


def test_a_list_says_how_each_begins(tmp_path: Path) -> None:
    with running(tmp_path, with_page=True) as server:
        chat = [{"role": "assistant", "content": "Good evening."}, {"role": "user", "content": "Who is there?"}]
        for name, story in {"one": {"text": "It rained. " * 99}, "two": {"chat": chat}, "three": {"chat": []}}.items():
            httpx.put(f"{server.url}/ui/stories/{name}", json=story).raise_for_status()
        begins = {one["id"]: one["begins"] for one in httpx.get(f"{server.url}/ui/stories").json()}
        assert begins == {"one": ("It rained. " * 99)[:100], "two": "Who is there?", "three": ""}
