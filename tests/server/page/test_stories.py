"""Stories as the server keeps them: what the model wrote in them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from sordino.server.errors import Refused
from sordino.server.page import stories
from sordino.server.page.stories import Stories, StoryUpdate
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


def test_of_two_servers_that_save_at_once_one_hears_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Stories(tmp_path), Stories(tmp_path)
    one.put("a", StoryUpdate(text="begun"))
    looked, may_write, content = threading.Event(), threading.Event(), stories._content

    def slow(story: Any) -> bytes:
        if story.text == "mine":
            looked.set()
            # Without a lock the other one is through by now.
            may_write.wait(0.3)
        return content(story)

    monkeypatch.setattr(stories, "_content", slow)
    with ThreadPoolExecutor(1) as pool:
        mine = pool.submit(one.put, "a", StoryUpdate(text="mine", revision=1))
        assert looked.wait(20)
        with pytest.raises(Refused, match="changed in another tab"):
            other.put("a", StoryUpdate(text="theirs", revision=1))
        may_write.set()
    assert mine.result().revision == 2
    stored = one.get("a")
    assert stored is not None
    assert stored.text == "mine"
