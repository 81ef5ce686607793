"""A soft prompt in front of a model of transformers: its own `generate` writes what ours does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sordino.engine.attach import attach
from sordino.engine.config import Sampling
from sordino.engine.detokenizer import HALF
from sordino.engine.generate import TextRequest, complete
from sordino.errors import ConfigError, DoesNotFit, ModelError
from sordino.prompts.attention import PromptAttention
from sordino.prompts.mixture import Mixture, uniform
from sordino.prompts.soft_prompt import PLACEMENTS, BaseRef, Metadata, PlacementName, SoftPrompt
from tests.tiny_models import CONTEXT, FAMILIES, tiny, tiny_base, tiny_tokenizer

TEXTS = ["The keeper wrote of the sea", "ships", "A lamp was lit and the lamp, the lamp went out: fog", ""]


def prompt(
    width: int = 32, *, tokens: int = 5, placement: PlacementName = "start", base: BaseRef | None = None
) -> SoftPrompt:
    matrix = np.random.default_rng(0).standard_normal((tokens, width)).astype(np.float32) * 0.5
    return SoftPrompt(matrix, Metadata(name="p", placement=placement, base=base or BaseRef()))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_ours(family: str, bos: bool, placement: PlacementName) -> None:
    base = tiny_base(family, bos=bos)
    own = prompt(tokens=11, placement=placement)
    attached = attach(base.network, base.tokenizer, own)
    expected = complete(base, [TextRequest(text, own) for text in TEXTS], Sampling(max_tokens=16, temperature=0))
    together = base.network.generate(**attached(TEXTS), max_new_tokens=16, do_sample=False)
    assert attached.decode(together) == [text.rstrip(HALF) for text in expected]
    for text, ours in zip(TEXTS, expected, strict=True):
        alone = base.network.generate(**attached(text), max_new_tokens=16, do_sample=False)
        assert attached.decode(alone) == [ours.rstrip(HALF)]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_chat_is_given_as_ids(placement: PlacementName) -> None:
    base = tiny_base("llama", bos=True)
    own = prompt(placement=placement)
    attached = attach(base.network, base.tokenizer, own)
    ids = base.encode_markup(base.chat_opening([{"role": "user", "content": "the sea"}]))
    expected = complete(base, [TextRequest(tuple(ids), own)], Sampling(max_tokens=16, temperature=0))
    for given in (ids, [ids], [*base.bos_ids, *ids], tuple(ids)):
        written = base.network.generate(**attached(given), max_new_tokens=16, do_sample=False)
        assert attached.decode(written) == [text.rstrip(HALF) for text in expected]
    assert attached([ids, "ships"])["attention_mask"].shape[0] == 2


def test_text_ends_where_the_model_ends_it() -> None:
    base = tiny_base("llama", bos=True)
    attached = attach(base.network, base.tokenizer, prompt())
    stop = min(base.stop_ids)
    letters = base.encode("lamp")
    ids = torch.tensor([[*letters, stop, *letters], [*letters, *letters, stop]])
    assert attached.decode(ids) == ["lamp", "lamplamp"]


def test_the_model_is_left_as_it_is() -> None:
    network = tiny("llama").train().requires_grad_(True)
    attached = attach(network, tiny_tokenizer(), prompt())
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not attached("the sea")["inputs_embeds"].requires_grad


def test_a_tokenizer_without_padding_pads_all_the_same() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    network = tiny("gpt2")
    given = attach(network, tokenizer, prompt())(["the sea", "x"])
    assert given["pad_token_id"] in given["eos_token_id"]
    assert given["attention_mask"].tolist()[1][0] == 0
    assert len(network.generate(**given, max_new_tokens=3, do_sample=False)) == 2


def test_what_cannot_be_attached_is_refused() -> None:
    network, tokenizer = tiny("llama"), tiny_tokenizer()
    with pytest.raises(DoesNotFit, match="16 wide"):
        attach(network, tokenizer, prompt(16), force=True)
    other = prompt(base=BaseRef(id="other", family="gpt2", d_model=32))
    with pytest.raises(DoesNotFit, match="family gpt2"):
        attach(network, tokenizer, other)
    assert attach(network, tokenizer, other, force=True).prompt is other
    with pytest.raises(ConfigError, match="from_transformers"):
        attach(network, tokenizer, Mixture((prompt(), prompt()), uniform(2)))
    with pytest.raises(ConfigError, match="does not fit the model's context"):
        attach(network, tokenizer, prompt())("x" * CONTEXT)
    network.config.is_encoder_decoder = True
    with pytest.raises(ModelError, match="encoder"):
        attach(network, tokenizer, prompt())


def test_a_held_prompt_is_refused_with_what_runs_it() -> None:
    held = SoftPrompt(np.ones((2, 32), np.float32), Metadata(attention=PromptAttention(hold=128)))
    with pytest.raises(ConfigError, match=r"hold or strength cannot be attached.*from_transformers"):
        attach(tiny("llama"), tiny_tokenizer(), held)
