"""`echo` with log probabilities, as lm_eval and others that score texts ask for them, against the plain model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from sordino import formats
from sordino.forward.combining import nll_of_texts
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import Gate, Mixture
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
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
def plain_logprobs(
    base: BaseModel, prompt: SoftPrompt | None, ids: Sequence[int], *, first: bool = False
) -> torch.Tensor:
    """Log probabilities [T, V] of what comes at each of the ids after the first, or at all, by concatenation: the model's own
    forward pass."""
    bos = base.embed(torch.tensor(base.bos_ids, dtype=torch.long))
    matrix = bos[:0] if prompt is None else torch.from_numpy(prompt.matrix.copy())
    after = prompt is not None and prompt.metadata.placement == "after_bos"
    front = torch.cat([bos, matrix] if after else [matrix, bos])
    embeds = torch.cat([front, base.embed(torch.tensor(ids))])
    logits = base.network(inputs_embeds=embeds[None]).logits[0]
    return torch.log_softmax(logits.float(), dim=1)[len(front) - first :][:-1]


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
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(ids) + new


def test_the_text_comes_first_then_its_continuation(live: Running) -> None:
    told = choice(live, prompt=TEXT, max_tokens=6)
    alone = post(live, prompt=TEXT, max_tokens=6, temperature=0).json()["choices"][0]
    assert told["text"] == TEXT + alone["text"]
    assert told["logprobs"] is None
    scored = choice(live, prompt=TEXT, max_tokens=6, logprobs=2)
    own = post(live, prompt=TEXT, max_tokens=6, temperature=0, logprobs=2).json()["choices"][0]["logprobs"]
    count = len(live.base.encode(TEXT))
    new = len(own["tokens"])
    # The text is read again to be scored: the same numbers as from the cache, not the same bits.
    found = scored["logprobs"]["token_logprobs"][count:]
    assert found[:new] == pytest.approx(own["token_logprobs"], abs=1e-5)
    assert scored["logprobs"]["text_offset"][count:][:new] == [offset + len(TEXT) for offset in own["text_offset"]]
    # What ends the text is a token too, as programs expect that score a text with one token after it.
    assert len(found) == new + (scored["finish_reason"] == "stop")
    assert "".join(scored["logprobs"]["tokens"][:count]) == TEXT


def test_several_texts_each_have_their_own(live: Running) -> None:
    texts = [TEXT, "The sea"]
    body = post(live, prompt=texts, max_tokens=0, echo=True, logprobs=0, n=2).json()
    assert [one["text"] for one in body["choices"]] == [TEXT, TEXT, "The sea", "The sea"]
    assert body["usage"]["completion_tokens"] == 0
    one = post(live, prompt=texts[1], max_tokens=0, echo=True, logprobs=0).json()["choices"][0]["logprobs"]
    assert body["choices"][2]["logprobs"]["token_logprobs"][1:] == pytest.approx(one["token_logprobs"][1:], abs=1e-5)


@pytest.mark.parametrize("name", ["", "keeper", "start"])
def test_a_bos_that_the_client_sends_is_not_there_twice_and_predicts_the_first_token(live: Running, name: str) -> None:
    ids, bos = live.base.encode(TEXT), list(live.base.bos_ids)
    how: dict[str, Any] = {"logprobs": 0, "max_tokens": 3, "soft_prompt": name}
    plain = choice(live, prompt=[ids], **how)["logprobs"]["token_logprobs"]
    sent = choice(live, prompt=[[*bos, *ids]], **how)["logprobs"]["token_logprobs"]
    assert plain[0] is None
    # Of a model without a BOS both requests are one.
    assert sent[:1] + sent[len(bos) + 1 :] == pytest.approx(plain, abs=1e-5)
    if bos:
        prompt = formats.read(live.folder / f"{name}.zip") if name else None
        expected = plain_logprobs(live.base, prompt, ids, first=True)[0, ids[0]]
        assert sent[1] == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("logprobs", [None, 2])
@pytest.mark.parametrize("new", [0, 4])
def test_streamed_the_text_is_one_event(live: Running, logprobs: int | None, new: int) -> None:
    body = {"prompt": [TEXT, "The sea"], "max_tokens": new, "logprobs": logprobs, "temperature": 0, "echo": True}
    whole = post(live, **body).json()["choices"]
    with httpx.stream(
        "POST", f"{live.url}/v1/completions", json={"model": live.base.name, **body, "stream": True}, timeout=60
    ) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    pieces = [json.loads(line)["choices"][0] for line in lines[:-1]]
    for index, expected in enumerate(whole):
        own = [piece for piece in pieces if piece["index"] == index]
        assert own[0]["text"] == [TEXT, "The sea"][index]
        assert "".join(piece["text"] for piece in own) == expected["text"]
        assert own[-1]["finish_reason"] == expected["finish_reason"]
        if logprobs is not None:
            for name, values in expected["logprobs"].items():
                found = [value for piece in own if piece["logprobs"] for value in piece["logprobs"][name]]
                if name == "token_logprobs":
                    assert found == pytest.approx(values, abs=1e-5)
                elif name != "top_logprobs":
                    assert found == values


def test_behind_a_mixture_the_scores_sum_to_its_loss(live: Running) -> None:
    """Of each component the whole text, weighted: the rule of the file."""
    parts = (voice(live.base, 1, name="The keeper"), voice(live.base, 2, name="The clerk"))
    mixture = Mixture(parts, np.array([0.25, 0.75]), "sequence", metadata=Metadata(name="Both", base=live.base.ref))
    formats.write_mixture(mixture, live.folder / "both.mix.zip")
    ids = live.base.encode(TEXT)
    found = choice(live, prompt=[ids], logprobs=1, max_tokens=0, soft_prompt="both")["logprobs"]["token_logprobs"]
    targets = torch.tensor(ids[1:])[:, None]
    nll_1K = torch.stack([-plain_logprobs(live.base, one, ids).gather(1, targets).sum() for one in parts])[None]
    expected = nll_of_texts(nll_1K, torch.tensor([[0.25, 0.75]]).log())
    assert -sum(found[1:]) == pytest.approx(float(expected), abs=1e-3)
    # With fixed weights each token by itself.
    fixed = choice(live, prompt=[ids], logprobs=1, max_tokens=0, soft_prompt="both", token_mixture=True)["logprobs"]
    each = torch.stack([plain_logprobs(live.base, one, ids).gather(1, targets)[:, 0].exp() for one in parts])
    by_token = (torch.tensor([0.25, 0.75])[:, None] * each).sum(0).log()
    assert fixed["token_logprobs"][1:] == pytest.approx(by_token.tolist(), abs=1e-4)


def test_behind_a_gate_the_text_cannot_be_scored(live: Running) -> None:
    parts = (voice(live.base, 1, name="The keeper"), voice(live.base, 2, name="The clerk"))
    gate = Gate(np.zeros((2, live.base.d_model), np.float32), np.zeros(2, np.float32))
    gated = Mixture(parts, np.ones(2), "sequence", gate, Metadata(name="Gated", base=live.base.ref))
    formats.write_mixture(gated, live.folder / "gated.mix.zip")
    answer = post(live, prompt=TEXT, echo=True, logprobs=1, max_tokens=0, soft_prompt="gated")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "echo"), answer.text
    assert choice(live, prompt=TEXT, logprobs=1, max_tokens=0, soft_prompt="gated", mixture_weights=[1, 1])


def test_what_cannot_be_scored_is_refused_by_name(live: Running) -> None:
    for fields, named in (
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": [[5] * 300], "logprobs": 1, "max_tokens": 0}, "prompt"),
        ({"prompt": ["a"] * 17, "logprobs": 1}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
    ):
        answer = post(live, **{"prompt": TEXT, "max_tokens": 1, "echo": True, **fields})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, named), answer.text
    assert post(live, prompt=TEXT, max_tokens=0).json()["error"]["param"] == "max_tokens"


def test_a_single_token_has_no_log_probability(live: Running) -> None:
    found = choice(live, prompt="a", max_tokens=0, logprobs=1)["logprobs"]
    assert found == {"tokens": ["a"], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}
