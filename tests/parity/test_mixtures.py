"""Mixtures write what a slow reference writes: each component's prompt and text concatenated, run whole by transformers for every
token, and combined by hand.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sordino.engine.detokenizer import HALF
from sordino.engine.generate import TextRequest, complete
from sordino.engine.sampling import Sampling, sample
from sordino.engine.seen_tokens import SeenTokens
from sordino.forward.gate_input import hidden_of_text
from sordino.forward.placement import leading_ids, prompt_embeds
from sordino.models import base_model
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import RULES, Gate, Mixture, Rule
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.parity.plain import plain_logits
from tests.tiny_models import FAMILIES, tiny_base

TEXT = "The keeper wrote of the sea"
SETTINGS = {
    "greedy": Sampling(max_tokens=12, temperature=0),
    "sampled": Sampling(max_tokens=12, temperature=0.9, top_p=0.9, repetition_penalty=1.2),
}


def component(base: BaseModel, tokens: int, seed: int, *, before_bos: bool = False) -> SoftPrompt:
    values = np.random.default_rng(seed).standard_normal((tokens, base.d_model)).astype(np.float32)
    size = 0.5 if base.d_model < 100 else base.embedding_rms
    return SoftPrompt(values * size, Metadata(placement="start" if before_bos else base.placement))


def mixture(base: BaseModel, rule: Rule) -> Mixture:
    """Of different lengths, one longer than tiny Gemma's window, one before BOS."""
    components = (component(base, 3, 1), component(base, 11, 2), component(base, 5, 3, before_bos=True))
    return Mixture(components, np.array([0.5, 0.3, 0.2]), rule)


def by_hand(base: BaseModel, mixed: Mixture, text: str, sampling: Sampling, seed: int) -> str:
    random = torch.Generator().manual_seed(seed)
    text_ids, new_ids = base.encode(text), []
    weights = mixed.weights_K
    if mixed.gate is not None:
        weights = mixed.gate.weights(hidden_of_text(base, text_ids).double().numpy())
    lead = list(leading_ids(base, mixed.components[0].metadata.placement))
    while len(new_ids) < sampling.max_tokens:
        rows = []
        for prompt in mixed.components:
            ids = [*leading_ids(base, prompt.metadata.placement), *text_ids, *new_ids]
            rows.append(plain_logits(base.network, prompt_embeds(base, prompt), ids)[-1].double().numpy())
        logits = np.array(rows)
        probs = np.exp(logits - logits.max(1, keepdims=True))
        level = np.log(probs.sum(1)) + logits.max(1)
        probs /= probs.sum(1, keepdims=True)
        mean = weights @ probs
        if mixed.rule == "logits":
            said = weights @ logits
        elif mixed.rule == "vote":
            votes = np.zeros_like(mean)
            for weight, row in zip(weights, probs, strict=True):
                votes[row.argmax()] += weight
            said = np.log((1 - 1e-6) * votes + 1e-6 * mean) + weights @ level
        else:
            said = np.log(mean) + weights @ level
        if mixed.rule == "logits":
            # Up to a constant; the level of the components is the one that penalties go by.
            said = said - np.log(np.exp(said - said.max()).sum()) - said.max() + weights @ level
        seen = SeenTokens(lead + text_ids + new_ids, sampling.repetition_range)
        token = sample(torch.from_numpy(said).float(), seen, sampling, random).token
        if token in base.stop_ids:
            break
        new_ids.append(token)
        if mixed.rule == "sequence":
            weights = weights * probs[:, token]
            weights = weights / weights.sum()
    # Half a character at the end is dropped, as `generate` does.
    return base.decode(text_ids + new_ids)[len(base.decode(text_ids)) :].rstrip(HALF)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixture_writes_what_the_reference_writes(family: str, rule: Rule, settings: str) -> None:
    base = tiny_base(family)
    mixed, sampling = mixture(base, rule), SETTINGS[settings]
    # Beside others: a mixture's rows are where its request is.
    requests = [TextRequest("ships", None, 9), TextRequest(TEXT, mixed, 5), TextRequest("x", component(base, 4, 7), 8)]
    assert complete(base, requests, sampling)[1] == by_hand(base, mixed, TEXT, sampling, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gate_gives_the_weights_to_begin_with(family: str) -> None:
    base = tiny_base(family)
    random = np.random.default_rng(4)
    gate = Gate(random.standard_normal((3, base.d_model)).astype(np.float32), np.zeros(3, np.float32))
    plain = mixture(base, "probabilities")
    mixed = Mixture(plain.components, plain.weights_K, "probabilities", gate)
    for text in (TEXT, "a lamp"):
        requests = [TextRequest("ships", plain, 9), TextRequest(text, mixed, 5)]
        sampling = SETTINGS["sampled"]
        assert complete(base, requests, sampling)[1] == by_hand(base, mixed, text, sampling, 5)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixture_of_one_writes_what_its_component_writes(family: str, settings: str) -> None:
    base = tiny_base(family)
    one = component(base, 5, 1)
    for rule in RULES:
        mixed = Mixture((one,), np.ones(1), rule)
        texts = complete(base, [TextRequest(TEXT, one, 3), TextRequest(TEXT, mixed, 3)], SETTINGS[settings])
        assert texts[0] == texts[1], rule


def test_requests_of_several_rows_end_one_by_one() -> None:
    base = tiny_base("llama")
    mixed = mixture(base, "sequence")
    requests = [TextRequest(text, mixed, seed) for seed, text in enumerate(["ships", "x", TEXT, "the sea"])]
    for at in range(1, 6):
        sampling = Sampling(max_tokens=30, temperature=1.5, stop=(" ", "e", "o")[: at % 3])
        together = complete(base, requests, sampling)
        assert together == [complete(base, [request], sampling)[0] for request in requests]


def test_weights_follow_what_is_written() -> None:
    """Of a component that is told from the others by what it says, fixed weights and updated ones write different texts."""
    base = tiny_base("llama")
    sampling = Sampling(max_tokens=20, temperature=1.0, top_p=1.0)
    written = {
        rule: [complete(base, [TextRequest(TEXT, mixture(base, rule), seed)], sampling)[0] for seed in range(5)]
        for rule in ("sequence", "probabilities")
    }
    assert written["sequence"] != written["probabilities"]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_the_real_model_writes_what_the_reference_writes(rule: Rule) -> None:
    base = base_model.load("smollm2", dtype="float32", device="cpu")
    mixed = mixture(base, rule)
    for sampling in SETTINGS.values():
        assert complete(base, [TextRequest(TEXT, mixed, 5)], sampling) == [by_hand(base, mixed, TEXT, sampling, 5)]


def test_an_architecture_that_is_not_packed_writes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    requests = [TextRequest(TEXT, mixture(base, "sequence"), 5), TextRequest("ships", None, 2)]
    expected = complete(base, requests, SETTINGS["sampled"])
    monkeypatch.setattr("sordino.forward.prefix.PACKABLE_FAMILIES", frozenset())
    assert complete(base, requests, SETTINGS["sampled"]) == expected
