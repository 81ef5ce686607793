"""Every kind of prompt through the same checks, and two kinds in one batch of the engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sordino.engine.generate import TextRequest, complete
from sordino.engine.sampling import Sampling
from sordino.errors import ConfigError, DoesNotFit
from sordino.forward.placement import encode_prompts, prompt_embeds
from sordino.prompts.kv_prompt import KVShape
from sordino.prompts.mixture import Mixture, uniform
from tests.prompts.keys_values_prompt import keys_values_of
from tests.prompts.kv_of import kv_of
from tests.prompts.prompt_conformance import check, embedding_prompt
from tests.tiny_models import FAMILIES, tiny_base


@pytest.mark.parametrize("family", FAMILIES)
def test_embedding_prompts_conform(family: str) -> None:
    base = tiny_base(family)
    check(base, lambda seed: embedding_prompt(base, 4, seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_keys_and_values_conform(family: str) -> None:
    base = tiny_base(family)
    check(base, lambda seed: keys_values_of(base, embedding_prompt(base, 4, seed)))


@pytest.mark.parametrize("placement", ["start", "after_bos"])
@pytest.mark.parametrize("family", FAMILIES)
def test_kv_prompts_conform(family: str, placement: str) -> None:
    base = tiny_base(family, bos=True)
    check(base, lambda seed: kv_of(base, embedding_prompt(base, 4, seed).with_metadata(placement=placement)))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shape_that_a_configuration_states_is_that_of_its_keys(family: str) -> None:
    base = tiny_base(family)
    assert base.kv_shape == kv_of(base, embedding_prompt(base, 2)).shape


def test_a_shape_that_a_configuration_does_not_state_is_measured() -> None:
    base = replace(tiny_base("llama"), kv_shape=None)
    prompt = kv_of(base, embedding_prompt(base, 2))
    assert encode_prompts(base, [prompt]).lengths == (2,)
    shape = prompt.shape
    narrow = replace(prompt, shape=KVShape(shape.layers, shape.heads * 2, shape.channels // 2))
    with pytest.raises(DoesNotFit, match="for another base model"):
        encode_prompts(base, [narrow])


@pytest.mark.parametrize("family", FAMILIES)
def test_two_kinds_write_the_same_in_one_batch_where_one_is_taken_from_the_other(family: str) -> None:
    base = tiny_base(family)
    prompts = [embedding_prompt(base, tokens, seed) for seed, tokens in enumerate((3, 7))]
    taken = [keys_values_of(base, prompt) for prompt in prompts]
    requests = [TextRequest("the lamp", prompt, 1) for prompt in (prompts[0], taken[0], None, taken[1], prompts[1])]
    texts = complete(base, requests, Sampling(max_tokens=12, temperature=0))
    assert texts[0] == texts[1]
    assert texts[3] == texts[4]
    assert len(set(texts)) == 3


def test_a_mixture_of_two_kinds_is_the_mixture_of_one() -> None:
    base = tiny_base("llama")
    one, other = embedding_prompt(base, 3, 1), embedding_prompt(base, 5, 2)
    sampling = Sampling(max_tokens=12, temperature=0)
    texts = [
        complete(base, [TextRequest("the lamp", Mixture(parts, uniform(2)), 1)], sampling)
        for parts in ((one, other), (keys_values_of(base, one), other))
    ]
    assert texts[0] == texts[1]


def test_keys_and_values_have_no_vectors() -> None:
    base = tiny_base("llama", bos=True)
    with pytest.raises(ConfigError, match="no vectors"):
        prompt_embeds(base, keys_values_of(base, embedding_prompt(base, 3)))


def test_keys_and_values_after_bos_give_what_their_embedding_prompt_gives() -> None:
    """BOS is the model's own, at position 0."""
    base = tiny_base("llama", bos=True)
    prompt = embedding_prompt(base, 3).with_metadata(placement="after_bos")
    as_vectors, kv = encode_prompts(base, [prompt]), kv_of(base, prompt)
    as_keys = encode_prompts(base, [kv])
    assert as_keys.lengths == as_vectors.lengths
    for one, other in zip(as_keys.tensors(), as_vectors.tensors(), strict=True):
        torch.testing.assert_close(one, other)
