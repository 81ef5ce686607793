"""Every decoder of transformers that a small configuration makes, against plain concatenation; and families that are refused.

Soft prompts of vectors that are no word's, of several lengths, before texts that are longer than the sliding windows; and RoPE
that changes with the length of the text, up to where it does.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sordino.errors import ModelError
from sordino.forward.nll import head_of
from sordino.forward.prefix import encode_prefixes, forward_rows
from sordino.forward.rows import rows_from_examples
from sordino.models import base_model
from sordino.models.architectures import check_config
from tests.tiny_models import SMALL_FIELDS, tiny_tokenizer

_WINDOW = 8
_SMALL: dict[str, Any] = {**SMALL_FIELDS, "sliding_window": _WINDOW}
EXACT = frozenset(
    """
afmoe apertus arcee aria_text beam biogpt bitnet bloom cohere cohere2 cohere2_moe ctrl cwm diffllama doge
ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon flex_olmo flint fuyu gemma gemma2 gemma3_text
gemma4_unified_text glm glm4 glm4_moe gpt-sw3 gpt2 gpt_bigcode gpt_neox gpt_neox_japanese gpt_oss granite
granite_swa granitemoe granitemoe_swa granitemoeshared hrm_text hy_v3 hyperclovax internlm3 iquestcoder jais2
jetmoe laguna llama mellum minimax_m2 minimax_m3_vl_text ministral3 mistral mixtral moshi mpt nanochat
nemotron olmo olmo2 olmo3 olmoe persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3
stablelm starcoder2 vaultgemma xglm
""".split()  # noqa: SIM905 - a list would be three times as long
)
# People ask for these.
ASKED = ("granite", "granitemoe", "cohere", "cohere2", "gemma4_unified_text", "mistral", "phi3", "qwen2", "gpt_oss")
REFUSED = {
    "falcon_h1": "recurrent or convolutional",
    "granitemoehybrid": "recurrent or convolutional",
    "bamba": "recurrent or convolutional",
    "zamba2": "recurrent or convolutional",
    "nemotron_h": "recurrent or convolutional",
    "qwen3_next": "recurrent or convolutional",
    "olmo_hybrid": "recurrent or convolutional",
    "kimi_linear": "recurrent or convolutional",
    "llama4_text": "soft prompts do not work on this architecture yet",
    "opt": "the logits of its own forward pass, got logits that are off by",
    "trocr": "the logits of its own forward pass, got logits that are off by",
    "cpmant": "takes no inputs_embeds",
}
LONG = {"long_factor": [4.0] * 4, "short_factor": [1.0] * 4}
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {"factor": 4.0, "original_max_position_embeddings": 64, **LONG},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def network_of(family: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    fields = {**_SMALL, **changes}
    config = CONFIG_MAPPING[family](**fields)
    check_config(config, where=family)
    network: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def distance(network: PreTrainedModel, prompt: int, text: int) -> float:
    """How far logits are from those of plain concatenation, relative to their norm."""
    ids = [1 + at % 319 for at in range(0, 7 * text, 7)]
    words_VD = network.get_input_embeddings()(torch.arange(2 * prompt))
    # Between words: vectors that are none.
    prompt_PD = (words_VD[:prompt] - words_VD[prompt:]) / 2**0.5
    text_TD = network.get_input_embeddings()(torch.tensor(ids))
    plain_TV = network(inputs_embeds=torch.cat([prompt_PD, text_TD])[None]).logits[0, prompt - 1 :]
    prefixes = encode_prefixes(network, [prompt_PD])
    hidden_TD = torch.cat([prefixes.last_KD, forward_rows(network, prefixes, rows_from_examples([[ids]], [0]))[0]])
    return float((head_of(network).logits(hidden_TD) - plain_TV).norm() / plain_TV.norm())


def check(family: str) -> None:
    network = network_of(family)
    for prompt, text in ((1, 3), (3, 1), (5, 4 * _WINDOW), (3 * _WINDOW, 5)):
        assert distance(network, prompt, text) < 1e-5, (prompt, text)


@pytest.mark.parametrize("family", ASKED)
def test_families_that_people_ask_for_equal_plain_concatenation(family: str) -> None:
    check(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(EXACT.difference(ASKED)))
def test_every_other_family_equals_plain_concatenation(family: str) -> None:
    check(family)


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_are_refused_say_why(family: str) -> None:
    with pytest.raises(ModelError, match=REFUSED[family]):
        _tried(family)


def _tried(family: str) -> None:
    # Hybrids are refused before they are built.
    check_config(CONFIG_MAPPING[family](), where=family)
    head_of(network_of(family))


@pytest.mark.parametrize(
    ("family", "kind"), [*((family, kind) for family in ("llama", "mistral") for kind in ROPES), ("phi3", "longrope")]
)
def test_positions_that_change_with_the_length_are_exact_up_to_where_the_context_ends(family: str, kind: str) -> None:
    # Phi-3's configuration has a field for it, which wins.
    stated = {"original_max_position_embeddings": 64} if family == "phi3" else {}
    rope = {"rope_type": kind, "rope_theta": 10_000.0, **ROPES[kind]}
    network = network_of(family, rope_parameters=rope, **stated)
    base = base_model.from_parts(network, tiny_tokenizer(), name=family)
    assert base.context_length == (64 if kind == "longrope" else 256)
    assert distance(network, 20, base.context_length - 20) < 1e-5
    # What the limit is for.
    if kind == "longrope":
        assert distance(network, 20, 60) > 0.01
