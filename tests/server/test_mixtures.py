"""A mixture wherever a soft prompt is: OpenAI's routes, KoboldAI's, the library's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from sordino import formats
from sordino.prompts.mixture import Mixture, Rule
from sordino.prompts.soft_prompt import Metadata
from tests.server.running import TEXT, Running, running, voice


def mixture(live: Running, weights: list[float], rule: Rule = "sequence") -> Mixture:
    parts = (voice(live.base, 1, name="The keeper"), voice(live.base, 2, name="The clerk"))
    return Mixture(parts, np.array(weights), rule, metadata=Metadata(name="Both", base=live.base.ref))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Room for two rows of a mixture of two, and for none of one of five."""
    with running(tmp_path_factory.mktemp("mixtures"), rows=4) as made:
        formats.write_mixture(mixture(made, [1, 1]), made.folder / "both.mix.zip")
        five = Mixture(tuple(voice(made.base, seed) for seed in range(5)), np.ones(5))
        formats.write_mixture(five, made.folder / "five.mix.zip")
        yield made


def complete(live: Running, soft: str, status: int = 200, **more: Any) -> dict[str, Any]:
    body = {"model": "tiny-llama", "soft_prompt": soft, "prompt": TEXT, "max_tokens": 12, "temperature": 0, **more}
    answer = httpx.post(f"{live.url}/v1/completions", json=body, timeout=30)
    assert answer.status_code == status, answer.text
    said: dict[str, Any] = answer.json()
    return said


def text(live: Running, soft: str, **more: Any) -> str:
    said: str = complete(live, soft, **more)["choices"][0]["text"]
    return said


def test_it_is_a_model_of_its_own_and_counts_its_longest_component(live: Running) -> None:
    names = [one["id"] for one in httpx.get(f"{live.url}/v1/models").json()["data"]]
    assert "tiny-llama:both" in names
    usage = complete(live, "both")["usage"]
    assert usage["prompt_tokens"] == len(live.base.encode(TEXT)) + len(live.base.bos_ids) + 4


def test_weights_of_the_request_take_the_place_of_its_own(live: Running) -> None:
    """All the weight on one component: that component, whatever else was asked a moment ago."""
    assert text(live, "both", mixture_weights=[1, 0]) == text(live, "keeper")
    assert text(live, "both", mixture_weights=[0, 3]) == text(live, "clerk")
    assert text(live, "both", mixture_weights=[2, 2]) == text(live, "both")


def test_held_weights_and_moving_ones_both_write(live: Running) -> None:
    told = [complete(live, "both", token_mixture=held, logprobs=2) for held in (True, False)]
    first, second = (one["choices"][0]["logprobs"]["token_logprobs"] for one in told)
    assert first[0] == second[0]
    assert first != second


@pytest.mark.parametrize("field", [{"mixture_weights": [1, 1]}, {"token_mixture": True}])
@pytest.mark.parametrize("soft", ["keeper", ""])
def test_fields_of_mixtures_are_refused_by_name_where_there_is_none(
    live: Running, soft: str, field: dict[str, Any]
) -> None:
    error = complete(live, soft, 400, **field)["error"]
    assert error["param"] == next(iter(field))
    assert "is for mixtures" in error["message"]


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [1, 1, 1]])
def test_weights_that_are_none_are_refused_by_name(live: Running, weights: list[float]) -> None:
    assert complete(live, "both", 400, mixture_weights=weights)["error"]["param"] == "mixture_weights"


def test_several_continuations_wait_for_their_rows(live: Running) -> None:
    """Three of two rows each, on four rows."""
    choices = complete(live, "both", n=3)["choices"]
    assert len(choices) == 3
    assert {one["text"] for one in choices} == {text(live, "both")}


def test_more_components_than_rows_are_refused_with_what_to_do(live: Running) -> None:
    error = complete(live, "five", 400)["error"]
    assert error["param"] == "soft_prompt"
    assert "--rows" in error["message"]


def test_a_chat_takes_it_too(live: Running) -> None:
    body = {"model": "tiny-llama:both", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    answer = httpx.post(f"{live.url}/v1/chat/completions", json={**body, "mixture_weights": [1, 2]}, timeout=30)
    # The tiny model has a chat template or says that it has none: the mixture is not what is refused.
    assert answer.status_code == 200 or "template" in answer.text


def test_kobold_clients_see_it_in_their_list_and_load_it(live: Running) -> None:
    api = f"{live.url}/api/v1"
    names = [one["value"] for one in httpx.get(f"{api}/config/soft_prompts_list").json()["values"]]
    assert "both.mix.zip" in names
    ask = {"prompt": TEXT, "max_length": 12, "temperature": 0, "rep_pen": 1, "top_p": 1}

    def said(**more: Any) -> str:
        answer = httpx.post(f"{api}/generate", json={**ask, **more}, timeout=30)
        assert answer.status_code == 200, answer.text
        result: str = answer.json()["results"][0]["text"]
        return result

    expected = text(live, "both")
    assert said(soft_prompt="both.mix.zip") == expected
    assert httpx.put(f"{api}/config/soft_prompt", json={"value": "both.mix.zip"}).status_code == 200
    try:
        assert httpx.get(f"{api}/config/soft_prompt").json() == {"value": "both.mix.zip"}
        assert said() == expected
    finally:
        httpx.put(f"{api}/config/soft_prompt", json={"value": ""})
    refusal = httpx.post(f"{api}/generate", json={**ask, "soft_prompt": "five.mix.zip"})
    assert (refusal.status_code, list(refusal.json()["detail"])) == (422, ["soft_prompt"])
    # As a default it would be refused at every request.
    assert httpx.put(f"{api}/config/soft_prompt", json={"value": "five.mix.zip"}).status_code == 422
    loaded = httpx.post(f"{live.url}/v1/soft_prompt/load", json={"soft_prompt_name": "five"})
    assert loaded.status_code == 400
    assert "--rows" in loaded.json()["error"]["message"]
    assert httpx.get(f"{api}/config/soft_prompt").json() == {"value": ""}


def test_it_is_uploaded_listed_counted_and_deleted(live: Running, tmp_path: Path) -> None:
    formats.write_mixture(mixture(live, [1, 3], "vote"), tmp_path / "u.mix.zip")
    files = {"file": ("two voices.mix.zip", (tmp_path / "u.mix.zip").read_bytes())}
    card = httpx.post(f"{live.url}/v1/soft_prompts", files=files).json()
    assert (card["id"], card["components"], card["n_tokens"]) == ("two voices", 2, 4)
    assert card["file"] == "two voices.mix.zip"
    cards = {one["id"]: one for one in httpx.get(f"{live.url}/v1/soft_prompts").json()["data"]}
    assert (cards["two voices"]["components"], cards["keeper"]["components"]) == (2, 0)
    complete(live, "two voices")
    metrics = httpx.get(f"{live.url}/metrics").text
    assert 'sordino_soft_prompt_requests_total{soft_prompt="two voices"} 1.0' in metrics
    assert httpx.delete(f"{live.url}/v1/soft_prompts/two voices").json()["deleted"]


def test_a_list_says_how_well_its_worst_component_fits_whatever_the_whole_says(live: Running) -> None:
    other = replace(live.base.ref, family="gpt2", fingerprint="other")
    parts = (voice(live.base, 1), voice(live.base, 2).with_metadata(base=other))
    mixed = Mixture(parts, np.ones(2), metadata=Metadata(name="Half", base=live.base.ref))
    formats.write_mixture(mixed, live.folder / "half.mix.zip")
    try:
        assert complete(live, "half", 400)["error"]["param"] == "soft_prompt"
        cards = {one["id"]: one for one in httpx.get(f"{live.url}/v1/soft_prompts").json()["data"]}
        assert (cards["half"]["fit"], cards["both"]["fit"]) == ("no", "exact")
        assert "gpt2" in cards["half"]["fit_reason"]
        assert "tiny-llama:half" not in [one["id"] for one in httpx.get(f"{live.url}/v1/models").json()["data"]]
    finally:
        (live.folder / "half.mix.zip").unlink()
