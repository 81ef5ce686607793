"""hold and strength in requests: OpenAI's routes, KoboldAI's, the library's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from sordino import formats
from sordino.engine.generate import TextRequest, complete
from sordino.engine.sampling import Sampling
from sordino.prompts.attention import PromptAttention
from sordino.prompts.mixture import Mixture, StoredPrompt, with_attention
from sordino.prompts.soft_prompt import Metadata
from sordino.server.chat_fields import ChatRequest
from sordino.server.kobold_fields import GenerateRequest
from sordino.server.openai_fields import CompletionRequest
from sordino.server.page.messages import Write
from sordino.server.page.stories import StoryUpdate
from tests.engine.toy_backend import ToyBackend
from tests.server.running import Running, post, running, voice

TEXT = "The keeper wrote of the sea and the ship and the lamp"
HELD = PromptAttention(hold=3, strength=2.0)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """keeper: plain. held: HELD in its file. both: a mixture of the two."""
    with running(tmp_path_factory.mktemp("attention")) as made:
        parts = (voice(made.base, 1, name="keeper"), voice(made.base, 2, attention=HELD, name="held"))
        formats.write(parts[1], made.folder / "held.zip")
        mixed = Mixture(parts, np.ones(2), metadata=Metadata(base=made.base.ref))
        formats.write_mixture(mixed, made.folder / "both.mix.zip")
        yield made


def completed(live: Running, soft: str, **more: Any) -> str:
    answer = post(
        live, "/v1/completions", model="tiny-llama", soft_prompt=soft, prompt=TEXT, max_tokens=12, temperature=0, **more
    )
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def by_kobold(live: Running, soft: str, **more: Any) -> str:
    fields = {"temperature": 0, "top_p": 1, "rep_pen": 1, "max_length": 12, "prompt": TEXT, "soft_prompt": soft}
    answer = post(live, "/api/v1/generate", **fields, **more)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["results"][0]["text"]
    return text


def stored(live: Running, name: str) -> StoredPrompt:
    return formats.read_any(live.folder / (f"{name}.mix.zip" if name == "both" else f"{name}.zip"))


def expected(live: Running, name: str, hold: Any = None, strength: Any = None) -> str:
    prompt = with_attention(stored(live, name), hold, strength)
    return complete(live.base, [TextRequest(TEXT, prompt)], Sampling(max_tokens=12, temperature=0))[0]


@pytest.mark.parametrize("ask", [completed, by_kobold])
def test_a_request_has_the_files_or_its_own(live: Running, ask: Any) -> None:
    assert ask(live, "held") == expected(live, "held")
    assert (
        ask(live, "held", hold="off", strength=1)
        == expected(live, "held", "off", 1)
        == ask(live, "held", hold=0, strength=1)
    )
    assert ask(live, "keeper", hold=2, strength=4) == expected(live, "keeper", 2, 4) != ask(live, "keeper")
    assert ask(live, "keeper", hold=None, strength=None) == expected(live, "keeper")
    # Nothing of an earlier request stays.
    assert ask(live, "held") == expected(live, "held") != expected(live, "held", "off", 1)
    assert ask(live, "", hold="off", strength=1) == ask(live, "")


@pytest.mark.parametrize("ask", [completed, by_kobold])
def test_components_have_their_own_or_one_each(live: Running, ask: Any) -> None:
    assert ask(live, "both") == expected(live, "both")
    each = {"hold": [1, "off"], "strength": [4, 0.5]}
    assert ask(live, "both", **each) == expected(live, "both", *each.values())
    assert ask(live, "both", hold=1, strength=4) == expected(live, "both", 1, 4)


def test_chat_takes_them_too(live: Running) -> None:
    def said(**more: Any) -> str:
        messages = [{"role": "user", "content": TEXT}]
        answer = post(
            live,
            "/v1/chat/completions",
            model="tiny-llama:keeper",
            messages=messages,
            max_tokens=8,
            temperature=0,
            **more,
        )
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["choices"][0]["message"]["content"]
        return text

    assert said(hold=1, strength=4) != said()


@pytest.mark.parametrize(
    ("soft", "more", "field"),
    [
        ("keeper", {"hold": -1}, "hold"),
        ("keeper", {"hold": 1.5}, "hold"),
        ("keeper", {"hold": "on"}, "hold"),
        ("keeper", {"hold": True}, "hold"),
        ("keeper", {"strength": 8}, "strength"),
        ("keeper", {"strength": "2"}, "strength"),
        ("keeper", {"strength": [1, 2]}, "strength"),
        ("both", {"hold": [1]}, "hold"),
        ("", {"hold": 4}, "hold"),
        ("", {"strength": 2}, "strength"),
    ],
)
def test_what_cannot_be_is_refused_by_name(live: Running, soft: str, more: dict[str, Any], field: str) -> None:
    answer = post(live, "/v1/completions", model="tiny-llama", soft_prompt=soft, prompt="a", **more)
    assert answer.status_code == 400, answer.text
    assert field in answer.json()["error"]["param"]
    answer = post(live, "/api/v1/generate", prompt="a", soft_prompt=soft, **more)
    assert answer.status_code == 422
    assert field in answer.json()["detail"]


def test_the_library_shows_them(live: Running) -> None:
    cards = {card["id"]: card.get("attention") for card in httpx.get(f"{live.url}/v1/soft_prompts").json()["data"]}
    plain, held = {"hold": None, "strength": 1.0}, {"hold": 3, "strength": 2.0}
    assert (cards["keeper"], cards["held"], cards["both"]) == ([plain], [held], [plain, held])


def test_a_backend_without_them_refuses_what_the_file_holds(tmp_path: Any) -> None:
    with running(tmp_path, backend=ToyBackend) as toy:
        formats.write(voice(toy.base, 2, attention=HELD), toy.folder / "held.zip")

        def ask(**more: Any) -> httpx.Response:
            return post(
                toy, "/v1/completions", model="tiny-llama", soft_prompt="held", prompt=TEXT, max_tokens=2, **more
            )

        error = ask().json()["error"]
        assert error["param"] == "hold"
        assert "toy does not support hold" in error["message"]
        assert "turn hold off" in error["message"]
        assert ask(hold="off").json()["error"]["param"] == "strength"
        assert ask(hold="off", strength=1).status_code == 200


def test_a_default_that_a_backend_does_not_support_is_refused_when_it_is_set(tmp_path: Any) -> None:
    """Clients that do not choose would be refused at every request."""
    with running(tmp_path, backend=ToyBackend) as toy:
        strong = voice(toy.base, 2, attention=PromptAttention(strength=2.0))
        formats.write(strong, toy.folder / "strong.zip")
        formats.write(voice(toy.base, 2, attention=HELD), toy.folder / "held.zip")
        mixed = Mixture((voice(toy.base, 1), strong), np.ones(2), metadata=Metadata(base=toy.base.ref))
        formats.write_mixture(mixed, toy.folder / "both.mix.zip")
        assert post(toy, "/v1/soft_prompt/load", soft_prompt_name="keeper").json() == {"default": "keeper"}
        for name, said in (("strong", "strength"), ("held", "hold"), ("both", "mixtures")):
            answer = post(toy, "/v1/soft_prompt/load", soft_prompt_name=name)
            assert answer.status_code == 400
            assert f"toy does not support {said}" in answer.json()["error"]["message"]
            assert toy.serving.prompts.default == "keeper"


@pytest.mark.parametrize("value", ["128", "on", 1.5, True, {"a": 1}, ["x"], [None], [1] * 17])
def test_what_is_no_hold_has_one_message(live: Running, value: Any) -> None:
    answer = post(live, "/v1/completions", model="tiny-llama:held", prompt=TEXT, hold=value)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith('hold: a whole number of tokens or "off" was expected')
    answer = post(live, "/api/v1/generate", prompt=TEXT, strength="2", soft_prompt="held")
    assert answer.json() == {"detail": {"strength": ["a number was expected, or a list of one for each component"]}}


@pytest.mark.parametrize(("field", "value"), [("strength", "2"), ("strength", 9), ("hold", 1), ("hold", "off")])
@pytest.mark.parametrize("soft", ["", "held"])
def test_the_page_is_checked_with_and_without_a_soft_prompt(live: Running, soft: str, field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        Write.model_validate({"id": 1, "text": {"story": TEXT}, "soft_prompts": [soft], field: value})


MANY: list[Any] = [{}] * 100_000


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        *((CompletionRequest, {field: MANY}) for field in ("prompt", "stop", "hold", "strength", "mixture_weights")),
        (CompletionRequest, {"logit_bias": {f"{at}": "x" for at in range(100_000)}}),
        (ChatRequest, {"messages": MANY}),
        (ChatRequest, {"messages": [{"role": "user", "content": MANY}]}),
        *((GenerateRequest, {field: MANY}) for field in ("sampler_order", "stop_sequence", "hold", "strength")),
        (Write, {"text": {"chat": MANY}}),
        (Write, {"weights": {"both": MANY}}),
        (StoryUpdate, {"chat": [1] * 100_000}),
    ],
)
def test_a_long_list_of_wrong_items_gives_few_errors(kind: type[BaseModel], fields: dict[str, Any]) -> None:
    """An error for each item blocked the server for a minute."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(fields)
    assert caught.value.error_count() < 10
