"""Mixtures in a crowded, changing batch say what a by-hand combination of each component's plain run says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sordino.engine.config import Limits
from sordino.engine.requests import Request
from sordino.engine.sampling import Sampling
from sordino.forward.combining import combine, responsible
from sordino.forward.gate_input import hidden_of_text
from sordino.forward.placement import leading_ids, prompt_embeds
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import RULES, Gate, Mixture, Rule
from sordino.prompts.soft_prompt import SoftPrompt
from tests.engine.test_torch_runner import TEXTS, Said, agreed, engine_of, prompt, requests_of, run
from tests.tiny_models import FAMILIES, tiny_base

NEW = 10


def mixture(base: BaseModel, rule: Rule, *, gate: bool = False) -> Mixture:
    components = tuple(prompt(base, tokens, seed, base.placement) for tokens, seed in ((3, 0), (11, 1), (5, 2)))
    random = torch.Generator().manual_seed(5)
    slope = torch.randn(3, base.d_model, generator=random).numpy()
    made = Mixture(components, np.array([0.2, 0.5, 0.3]), rule)
    return Mixture(components, made.weights_K, rule, Gate(slope, np.zeros(3, np.float32))) if gate else made


def request_of(base: BaseModel, mixture: Mixture, text: str, sampling: Sampling) -> Request:
    ids = (*leading_ids(base, mixture.metadata.placement), *base.encode(text))
    return Request(ids, mixture, sampling)


@torch.inference_mode()
def by_hand(base: BaseModel, request: Request) -> tuple[list[int], list[float]]:
    """Greedy tokens, each from a whole pass of every component alone; and the gap between the two likeliest words."""
    mixture = request.prompt
    assert isinstance(mixture, Mixture)
    weights = mixture.weights_K
    if mixture.gate is not None:
        weights = mixture.gate.weights(hidden_of_text(base, request.ids).double().numpy())
    log_weights = torch.from_numpy(weights.copy()).log()
    ids, new, gaps = list(request.ids), [], []
    while len(new) < request.sampling.max_tokens:
        logp_KV = torch.stack([_logits(base, soft, ids + new).log_softmax(-1) for soft in mixture.components])
        logits_V = combine(logp_KV, log_weights, mixture.rule)
        top = logits_V.topk(2).values
        gaps.append(float(top[0] - top[1]))
        token = int(logits_V.argmax())
        if token in base.stop_ids:
            break
        if mixture.rule == "sequence" and not request.token_mixture:
            log_weights = responsible(log_weights, logp_KV[:, token])
        new.append(token)
    return new, gaps


def _logits(base: BaseModel, soft: SoftPrompt, ids: list[int]) -> torch.Tensor:
    text_TD = base.embed(torch.tensor(ids, dtype=torch.long))
    both = torch.cat([prompt_embeds(base, soft).to(text_TD.dtype), text_TD])[None]
    logits: torch.Tensor = base.network(inputs_embeds=both).logits[0, -1]
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_crowd_of_mixtures_equals_their_components_by_hand(family: str) -> None:
    base = tiny_base(family, dtype=torch.float64)
    greedy = Sampling(max_tokens=NEW, temperature=0)
    mixtures = [mixture(base, rule) for rule in RULES] + [mixture(base, "sequence", gate=True)]
    requests = [request_of(base, one, TEXTS[index], greedy) for index, one in enumerate(mixtures)]
    others = [one for one in requests_of(base, greedy) if one.ids or one.prompt or base.bos_ids]
    mixed = [one for pair in zip(requests, others, strict=False) for one in pair]
    engine = engine_of(base, Limits(rows=7, queue=20, tokens=24, chunk=7))
    said = run(engine, mixed)[::2]
    ties = sum(not agreed(row.ids, *by_hand(base, one)) for row, one in zip(said, requests, strict=True))
    assert ties <= 1
    assert engine.counts == (0, 0)
    # Three components that five mixtures share, and no prefix more than was asked for: each is run once.
    kinds = {(p.content_hash, p.metadata.placement) for p in mixtures[0].components}
    plain = {(o.prompt.content_hash, o.prompt.metadata.placement) if o.prompt else "" for o in others[: len(requests)]}  # type: ignore[union-attr]
    assert engine.runner.cache_use().misses == len(kinds | plain)  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_little_memory_changes_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixtures go back to the queue with the weights they had, and find some of their text kept."""
    monkeypatch.setattr("sordino.engine.runners.kv_pool.SMALLEST", 8)
    base = tiny_base(family, dtype=torch.float64)
    text = base.encode(TEXTS[2])
    sampling = Sampling(max_tokens=25, temperature=1.0, top_p=1.0)
    made = mixture(base, "sequence")
    leading = leading_ids(base, base.placement)
    requests = [Request((*leading, *text[at : at + 9]), made, sampling, seed=at) for at in range(3)]
    limits = Limits(rows=9, queue=9, tokens=64, chunk=6)
    wide = run(engine_of(base, limits), requests, steps_between=0)
    engine = engine_of(base, limits)
    position = engine.runner._key_values.shape.position_bytes  # type: ignore[attr-defined]
    narrow = engine_of(base, limits, kv_bytes=300 * position)
    put_back: list[int] = []
    close = narrow.runner.close
    monkeypatch.setattr(narrow.runner, "close", lambda number, ids: put_back.append(number) or close(number, ids))
    said: list[Said] = run(narrow, requests, steps_between=0)
    assert [row.ids for row in said] == [row.ids for row in wide]
    assert len(put_back) > 9
