"""Held prompts in a crowded, changing batch give what a plain pass with log w(t) in its mask gives, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from sordino.engine.config import Limits
from sordino.engine.engine import Engine
from sordino.engine.requests import Request
from sordino.engine.runners.runner import Span
from sordino.engine.runners.torch_runner import TorchRunner
from sordino.engine.sampling import Sampling
from sordino.errors import ConfigError
from sordino.forward.combining import combine, responsible
from sordino.forward.placement import leading_ids, prompt_embeds
from sordino.models.base_model import BaseModel
from sordino.prompts.attention import PLAIN, PromptAttention
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import SoftPrompt
from tests.engine.test_torch_runner import TEXTS, agreed, engine_of, prompt, run
from tests.parity.test_hold import reference_logits
from tests.tiny_models import FAMILIES, tiny_base

GREEDY = Sampling(max_tokens=10, temperature=0)
ATTENTION = [
    PromptAttention(hold=4, strength=2.5),
    PromptAttention(strength=0.5),
    PLAIN,
    PromptAttention(hold=9),
    PromptAttention(hold=1),
]


def held_prompts(base: BaseModel) -> list[SoftPrompt]:
    """Of several lengths, one longer than tiny Gemma's window; one before BOS; one that is its attention sink and nothing else."""
    made = [
        prompt(base, 3, 0, base.placement),
        prompt(base, 11, 1, base.placement),
        prompt(base, 5, 2, base.placement),
        prompt(base, 7, 3, "start"),
        prompt(base, 1, 4, "start"),
    ]
    return [one.with_metadata(attention=attention) for one, attention in zip(made, ATTENTION, strict=True)]


def request_of(base: BaseModel, soft: SoftPrompt | None, text: Sequence[int], sampling: Sampling = GREEDY) -> Request:
    placement = soft.metadata.placement if soft else None
    return Request((*leading_ids(base, placement), *text), soft, sampling)


@torch.inference_mode()
def plain_logits(base: BaseModel, soft: SoftPrompt | None, ids: Sequence[int]) -> Tensor:
    """Logits [V] after the last of `ids`."""
    attention = soft.metadata.attention if soft else PLAIN
    return reference_logits(base.network, prompt_embeds(base, soft), list(ids), attention)[-1]


def plain_greedy(base: BaseModel, request: Request) -> tuple[list[int], list[float]]:
    """Greedy tokens, each by a whole pass, and the gap between the two likeliest words."""
    ids, gaps = list(request.ids), []
    while len(ids) < len(request.ids) + request.sampling.max_tokens:
        assert not isinstance(request.prompt, Mixture)
        top = plain_logits(base, request.prompt, ids).topk(2)  # type: ignore[arg-type]
        gaps.append(float(top.values[0] - top.values[1]))
        if int(top.indices[0]) in base.stop_ids:
            break
        ids.append(int(top.indices[0]))
    return ids[len(request.ids) :], gaps


def ties(base: BaseModel, engine: Engine, requests: list[Request]) -> int:
    rows = run(engine, requests)
    return sum(not agreed(row.ids, *plain_greedy(base, one)) for row, one in zip(rows, requests, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_crowd_of_held_and_plain_rows_equals_the_plain_mask(family: str) -> None:
    """Prefilled in chunks; then every text goes on from its cached beginning."""
    base = tiny_base(family)
    prompts = [None, *held_prompts(base)]
    texts = [base.encode(text) for text in (TEXTS[2], TEXTS[0], TEXTS[1])]
    requests = [request_of(base, soft, texts[at % 3]) for at, soft in enumerate(prompts * 2)]
    engine = engine_of(base, Limits(rows=4, queue=20, tokens=16, chunk=7))
    assert ties(base, engine, requests) <= 1
    longer = [request_of(base, soft, [*texts[0], *base.encode(" of the lamp")]) for soft in prompts]
    assert ties(base, engine, [request_of(base, soft, texts[0]) for soft in prompts]) <= 1
    before = engine.runner.cache_use().text_hits
    assert ties(base, engine, longer) <= 1
    assert engine.runner.cache_use().text_hits >= before + len(prompts)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_held_rows_equal_the_plain_mask(family: str, dtype: torch.dtype) -> None:
    """Rows in a prefill of two chunks beside rows that decode."""
    base, whole = tiny_base(family, dtype=dtype), tiny_base(family)
    runner = TorchRunner(base)
    prompts = [None, *held_prompts(base)]
    text = base.encode(TEXTS[2])
    ids = [request_of(base, soft, text).ids for soft in prompts]
    for number, soft in enumerate(prompts):
        assert runner.open(number, soft, ids[number]) == 0
    runner.run([Span(number, row[:9], False) for number, row in enumerate(ids)])
    late = range(0, len(ids), 2)
    runner.run([Span(number, row[9:-1], False) for number, row in enumerate(ids) if number not in late])
    spans = [Span(number, row[9:] if number in late else row[-1:], True) for number, row in enumerate(ids)]
    for logits_V, soft, row in zip(torch.as_tensor(runner.run(spans)), prompts, ids, strict=True):
        # The runner returns float32.
        wanted_V = plain_logits(whole, soft, row).float()
        torch.testing.assert_close(logits_V, wanted_V, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-5)


def test_components_have_their_own_hold_and_strength() -> None:
    base = tiny_base("llama")
    components = [soft for soft in held_prompts(base) if soft.metadata.placement == base.placement]
    mixed = Mixture(tuple(components), np.full(len(components), 1 / len(components)))
    text = base.encode(TEXTS[0])
    request = Request((*leading_ids(base, base.placement), *text), mixed, GREEDY)
    found = run(engine_of(base, Limits(rows=7, queue=9, tokens=24, chunk=7)), [request, request])
    log_weights, new, gaps = torch.from_numpy(mixed.weights_K.copy()).log(), [], []
    while len(new) < GREEDY.max_tokens:
        ids = [*request.ids, *new]
        logp_KV = torch.stack([plain_logits(base, soft, ids).log_softmax(-1) for soft in components])
        top = combine(logp_KV, log_weights, mixed.rule).topk(2)
        gaps.append(float(top.values[0] - top.values[1]))
        token = int(top.indices[0])
        if token in base.stop_ids:
            break
        log_weights = responsible(log_weights, logp_KV[:, token])
        new.append(token)
    assert all(agreed(row.ids, new, gaps) for row in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_attention_has_no_bias(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def bias(*_: object) -> Tensor:
        raise AssertionError("nothing is weighted here")

    monkeypatch.setattr("sordino.forward.weighting._log_weight", bias)
    base = tiny_base(family)
    soft = held_prompts(base)[1].with_metadata(attention=PLAIN)
    assert run(engine_of(base, Limits(rows=4)), [request_of(base, soft, base.encode(TEXTS[0]))])[0].ids


def test_an_architecture_that_is_in_no_parity_test_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sordino.forward.prefix.PACKABLE_FAMILIES", frozenset())
    base = tiny_base("qwen3")
    runner = TorchRunner(base)
    assert not runner.hold
    assert runner.strengths == "one"
    with pytest.raises(ConfigError, match="hold and strength"):
        runner.open(0, held_prompts(base)[0], (5,))
