"""The route of the first visit: the recommended model, and the soft prompts that come with it."""

from __future__ import annotations

from pathlib import Path

import httpx

from sordino.models.bundled import BUNDLED
from sordino.server.page.starters import packaged_starters, starting_model
from tests.server.running import running


def test_every_packaged_soft_prompt_has_an_opening_and_a_bundled_model() -> None:
    assert packaged_starters()
    for one in packaged_starters():
        assert one.opening.strip(), one.name
        assert one.base in {model.id for model in BUNDLED.values()}, one.name


def test_the_first_visit_knows_what_to_load_and_what_it_needs(tmp_path: Path) -> None:
    with running(tmp_path, with_page=True, idle=True) as server:
        found = httpx.get(f"{server.url}/ui/starters").json()
    model = starting_model()
    assert (found["model"], found["megabytes"]) == (model.name, model.megabytes)
    assert found["needed"] > model.megabytes * 1_000_000
    assert found["fits"] in (True, False)
    assert [one["name"] for one in found["prompts"]] == ["keeper", "port-dolor", "village-gazette"]
