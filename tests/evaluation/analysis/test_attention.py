"""Attention to the prompt: as transformers tells it for a row alone, and as worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sordino.evaluation.analysis.attention import attention, eager_twin
from sordino.models.base_model import BaseModel, from_parts
from sordino.prompts.attention import PromptAttention
from sordino.prompts.soft_prompt import Metadata, PlacementName, SoftPrompt
from sordino.texts.examples import Example
from tests.parity.test_hold import reference_masks
from tests.prompt_files import matrix
from tests.tiny_models import FAMILIES, tiny, tiny_base, tiny_tokenizer

# Longer than Gemma 3's window in tests (8).
TEXTS = [[7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19], [40, 41, 42], [99], [5, 6, 7, 8, 9, 10], [1, 2, 3, 4]]
WINDOWS = [Example(tuple(ids), (True,) * len(ids), "text") for ids in TEXTS]


def voice(placement: PlacementName = "start", tokens: int = 5) -> SoftPrompt:
    return SoftPrompt(matrix(1, tokens, 32), Metadata(placement=placement))


def plain_shares(base: BaseModel, prompt: SoftPrompt, bos: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """By a model that was made eager, a row at a time: [L, P] on the virtual tokens, [L] on BOS."""
    eager = tiny(base.family.removesuffix("_text"), attn_implementation="eager")
    soft_PD = torch.from_numpy(prompt.matrix.copy()).double()
    total, places, asking = 0, [], 0
    for ids in TEXTS:
        first = bos if prompt.metadata.placement == "after_bos" else []
        embed = eager.get_input_embeddings()
        parts = [soft_PD, embed(torch.tensor([*([] if first else bos), *ids]))]
        embeds = torch.cat([embed(torch.tensor(first)), *parts] if first else parts)[None]
        held = prompt.metadata.attention
        ahead = len(first) + prompt.n_tokens
        masks = None if held.plain else reference_masks(eager, ahead, embeds.shape[1], held)
        said = eager(inputs_embeds=embeds, attention_mask=masks, use_cache=False, output_attentions=True).attentions
        weights_LHTS = torch.stack([layer[0, :, -len(ids) :] for layer in said])
        start = embeds.shape[1] - len(ids)
        total = total + weights_LHTS.mean(1).sum(1)[:, :start]
        asking += len(ids)
        places = list(range(len(first), len(first) + prompt.n_tokens))
    shares_LS = (total / asking).numpy()
    return shares_LS[:, places], np.delete(shares_LS, places, axis=1).sum(1)


@pytest.mark.parametrize("placement", ["start", "after_bos"])
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_as_transformers_tells_it_for_a_row_alone(family: str, bos: bool, placement: PlacementName) -> None:
    base = tiny_base(family, bos=bos)
    prompt = voice(placement)
    expected_LP, bos_L = plain_shares(base, prompt, list(base.bos_ids))
    seen = attention(base, prompt, WINDOWS)
    np.testing.assert_allclose(seen.shares_LP, expected_LP, atol=1e-6 if family == "gptj" else 1e-7)
    np.testing.assert_allclose(seen.bos_L, bos_L, atol=1e-6)
    assert seen.positions == sum(map(len, TEXTS))
    assert (seen.by_layer_L + seen.bos_L <= 1 + 1e-6).all()
    assert (seen.shares_LP >= 0).all()


@pytest.mark.parametrize("placement", ["start", "after_bos"])
@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_prompt_that_is_held(family: str, placement: PlacementName) -> None:
    base = tiny_base(family, bos=True)
    prompt = voice(placement).with_metadata(attention=PromptAttention(hold=3, strength=2.0))
    expected_LP, _ = plain_shares(base, prompt, list(base.bos_ids))
    found = attention(base, prompt, WINDOWS)
    np.testing.assert_allclose(found.shares_LP, expected_LP, atol=1e-6 if family == "gptj" else 1e-7)


def test_by_hand_on_the_first_layer_of_gpt2() -> None:
    network = tiny("gpt2")
    base = from_parts(network, tiny_tokenizer(), name="tiny-gpt2")
    prompt, ids = voice(tokens=3), TEXTS[0]
    seen = attention(base, prompt, WINDOWS[:1])
    layer, width = network.transformer.h[0], 3 + len(ids)
    text = network.transformer.wte(torch.tensor(ids))
    hidden = torch.cat([torch.from_numpy(prompt.matrix.copy()).double(), text]) + network.transformer.wpe.weight[:width]
    queries, keys, _ = layer.attn.c_attn(layer.ln_1(hidden)).split(32, dim=-1)
    shares = torch.zeros(3, dtype=torch.float64)
    for head in range(4):
        own = slice(8 * head, 8 * head + 8)
        for at in range(3, width):
            scores = keys[: at + 1, own] @ queries[at, own] / math.sqrt(8)
            shares += scores.softmax(0)[:3] / 4 / len(ids)
    np.testing.assert_allclose(seen.shares_LP[0], shares.numpy(), atol=1e-7)


def test_the_given_network_stays_as_it_is() -> None:
    base = tiny_base("llama")
    before = base.network.config._attn_implementation
    twin = eager_twin(base.network)
    attention(base, voice(), WINDOWS)
    assert base.network.config._attn_implementation == before != "eager"
    assert twin.config._attn_implementation == "eager"
    assert {p.data_ptr() for p in twin.parameters()} == {p.data_ptr() for p in base.network.parameters()}
