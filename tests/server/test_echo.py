"""`echo` with log probabilities, as lm_eval and others that score texts ask for them, against the plain model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch

from sordino import formats
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import SoftPrompt
from tests.server.running import Running, running, voice
from tests.tiny_models import tiny_base

TEXT = "The keeper wrote in the log that the light"


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base = tiny_base(request.param, dtype=torch.float32)
    with running(tmp_path_factory.mktemp("echo"), base) as made:
        # As PEFT places it: before everything, BOS included.
        start = voice(base, 3)
        formats.write(SoftPrompt(start.matrix, replace(start.metadata, placement="start")), made.folder / "start.zip")
        yield made


def post(live: Running, **body: Any) -> httpx.Response:
    return httpx.post(f"{live.url}/v1/completions", json={"model": live.base.name, **body}, timeout=60)


def choice(live: Running, **body: Any) -> dict[str, Any]:
    answer = post(live, temperature=0, echo=True, **body)
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["choices"]
    return dict(found)


@torch.inference_mode()
def plain_logprobs(base: BaseModel, prompt: SoftPrompt | None, ids: Sequence[int]) -> torch.Tensor:
    """Log probabilities [T, V] of what comes at each of the ids, by concatenation: the model's own forward pass."""
    bos = base.embed(torch.tensor(base.bos_ids, dtype=torch.long))
    matrix = bos[:0] if prompt is None else torch.from_numpy(prompt.matrix.copy())
    after = prompt is not None and prompt.metadata.placement == "after_bos"
    front = torch.cat([bos, matrix] if after else [matrix, bos])
    embeds = torch.cat([front, base.embed(torch.tensor(ids))])
    logits = base.network(inputs_embeds=embeds[None]).logits[0]
    return torch.log_softmax(logits.float(), dim=1)[len(front) :][:-1]


@pytest.mark.parametrize("name", ["", "keeper", "start"])
@pytest.mark.parametrize("new", [0, 1])
def test_the_log_probabilities_of_a_text_are_the_plain_models(live: Running, name: str, new: int) -> None:
    ids = live.base.encode(TEXT)
    prompt = formats.read(live.folder / f"{name}.zip") if name else None
    found = choice(live, prompt=[ids], logprobs=1, max_tokens=new, soft_prompt=name, seed=1234)["logprobs"]
    expected = plain_logprobs(live.base, prompt, ids)
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    values = torch.tensor(found["token_logprobs"][1 : len(ids)])
    torch.testing.assert_close(values, expected.gather(1, torch.tensor(ids[1:])[:, None])[:, 0], atol=1e-4, rtol=1e-4)
    tops = torch.tensor([max(top.values()) for top in found["top_logprobs"][1 : len(ids)]])
    torch.testing.assert_close(tops, expected.max(dim=1).values, atol=1e-4, rtol=1e-4)
    # Exactly the same number where the token is the likeliest: lm_eval compares them.
    likeliest = (expected.argmax(dim=1) == torch.tensor(ids[1:])).tolist()
    assert [value == top for value, top in zip(values.tolist(), tops.tolist(), strict=True)] == likeliest
    assert len(found["tokens"]) == len(found["token_logprobs"]) <= len(ids) + new


def test_the_text_comes_first_then_its_continuation(live: Running) -> None:
    told = choice(live, prompt=TEXT, max_tokens=6)
    alone = post(live, prompt=TEXT, max_tokens=6, temperature=0).json()["choices"][0]
    assert told["text"] == TEXT + alone["text"]
    assert told["logprobs"] is None
    scored = choice(live, prompt=TEXT, max_tokens=6, logprobs=2)
    own = post(live, prompt=TEXT, max_tokens=6, temperature=0, logprobs=2).json()["choices"][0]["logprobs"]
    count = len(live.base.encode(TEXT))
    assert scored["logprobs"]["token_logprobs"][count:] == own["token_logprobs"]
    assert scored["logprobs"]["text_offset"][count:] == [offset + len(TEXT) for offset in own["text_offset"]]
    assert "".join(scored["logprobs"]["tokens"][:count]) == TEXT


def test_several_texts_each_have_their_own(live: Running) -> None:
    texts = [TEXT, "The sea"]
    body = post(live, prompt=texts, max_tokens=0, echo=True, logprobs=0, n=2).json()
    assert [one["text"] for one in body["choices"]] == [TEXT, TEXT, "The sea", "The sea"]
    assert body["usage"]["completion_tokens"] == 0
    one = post(live, prompt=texts[1], max_tokens=0, echo=True, logprobs=0).json()["choices"][0]["logprobs"]
    assert body["choices"][2]["logprobs"]["token_logprobs"][1:] == pytest.approx(one["token_logprobs"][1:], abs=1e-5)


def test_a_bos_that_the_client_sends_is_not_there_twice(live: Running) -> None:
    ids, bos = live.base.encode(TEXT), list(live.base.bos_ids)
    plain = choice(live, prompt=[ids], logprobs=0, max_tokens=3)["logprobs"]["token_logprobs"]
    sent = choice(live, prompt=[[*bos, *ids]], logprobs=0, max_tokens=3)["logprobs"]["token_logprobs"]
    assert plain[0] is None
    # Of a model without a BOS both requests are one.
    assert sent == [*[None] * len(bos), *plain]


def test_what_cannot_be_scored_is_refused_by_name(live: Running) -> None:
    for fields, named in (
        ({"stream": True}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": [[5] * 300], "logprobs": 1, "max_tokens": 0}, "prompt"),
        ({"prompt": ["a"] * 17, "logprobs": 1}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
    ):
        answer = post(live, **{"prompt": TEXT, "max_tokens": 1, "echo": True, **fields})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, named), answer.text
    assert post(live, prompt=TEXT, max_tokens=0).json()["error"]["param"] == "max_tokens"


def test_a_runner_that_shows_no_network_says_so(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live.serving.backend, "network", None)
    answer = post(live, prompt=TEXT, max_tokens=1, echo=True, logprobs=1)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "echo")
    assert post(live, prompt=TEXT, max_tokens=1, echo=True).status_code == 200


def test_a_single_token_has_no_log_probability(live: Running) -> None:
    found = choice(live, prompt="a", max_tokens=0, logprobs=1)["logprobs"]
    assert found == {"tokens": ["a"], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}
