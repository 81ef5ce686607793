"""Models whose configuration scales embeddings, residuals, attention or logits, and models that look up which words vectors are.

People had Granite and Command R, which were refused, and Gemma 4 with per-layer inputs, which was called right and then ended in
an internal error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sordino.cli.loading import loaded_model
from sordino.errors import ModelError
from sordino.forward.nll import check_unproven, head_of, nll_of_rows
from sordino.forward.prefix import encode_prefixes, forward_rows
from sordino.forward.rows import rows_from_examples
from sordino.models import base_model
from tests.parity.plain import plain_logits, plain_nll
from tests.tiny_models import SMALL_FIELDS, VOCAB_SIZE, _keep_norms_exact, tiny_tokenizer

MULTIPLIED = {"embedding_multiplier": 12.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LOW_RANK = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
SCALED: dict[str, dict[str, Any]] = {
    "granite": {**MULTIPLIED, "logits_scaling": 4.0},
    "granitemoe": {**MULTIPLIED, **EXPERTS, "logits_scaling": 3.0},
    "hyperclovax": {**MULTIPLIED, "logits_scaling": 0.25},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.3, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "minicpm3": {**LOW_RANK, "num_key_value_heads": 4, "dim_model_base": 8, "scale_emb": 12, "scale_depth": 1.4},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "final_logit_softcapping": 5.0},
    "olmo2": {},
}


# In float64 to the end, where the norms are; the others round to float32 in places of their own.
EXACT = frozenset({"granite", "hyperclovax", "minicpm3", "olmo2"})
# Mixtures of experts have no float64, nor has eager attention after padding.
SINGLE = frozenset({"granitemoe", "gemma2"})


def scaled(family: str, dtype: torch.dtype = torch.float64, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**SMALL_FIELDS, **SCALED.get(family, {}), **changes})
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    network = network.to(dtype).eval().requires_grad_(False)
    if dtype == torch.float64 and family in EXACT:
        _keep_norms_exact(network)
    return network


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("family", SCALED)
def test_loss_logits_and_gradient_equal_plain_concatenation(family: str) -> None:
    dtype = torch.float32 if family in SINGLE else torch.float64
    network, tolerance = scaled(family, dtype), 1e-10 if family in EXACT else 1e-5
    random = torch.Generator().manual_seed(1)
    prompts = [
        (torch.randn(length, 32, generator=random, dtype=torch.float64).to(dtype) * 0.3).requires_grad_()
        for length in (3, 11)
    ]
    texts = [torch.randint(VOCAB_SIZE, (length,), generator=random).tolist() for length in (13, 5, 20)]
    behind = [0, 1, 1]
    labels = [[at % 3 != 1 for at in range(len(ids))] for ids in texts]

    prefixes = encode_prefixes(network, prompts)
    rows = rows_from_examples([[ids] for ids in texts], behind)
    labelled_BT = torch.zeros_like(rows.ids_BT, dtype=torch.bool)
    for row, flags in enumerate(labels):
        labelled_BT[row, : len(flags)] = torch.tensor(flags)
    found_N = nll_of_rows(network, prefixes, rows, labelled_BT)
    plain_N = torch.cat(
        [plain_nll(network, prompts[k], ids, flags) for k, ids, flags in zip(behind, texts, labels, strict=True)]
    )
    torch.testing.assert_close(found_N, plain_N, rtol=0, atol=tolerance)
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(nll.mean(), prompts)]) for nll in (found_N, plain_N)
    ]
    assert relative(*gradients) < 10 * tolerance
    hidden_BTD = forward_rows(network, prefixes, rows)
    for row, (k, ids) in enumerate(zip(behind, texts, strict=True)):
        plain_TV = plain_logits(network, prompts[k], ids)[len(prompts[k]) :]
        assert relative(head_of(network).logits(hidden_BTD[row, : len(ids)]), plain_TV) < tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "scale", "softcap"),
    [
        ("granite", 1 / 4.0, None),
        ("hyperclovax", 0.25, None),
        ("cohere", 0.0625, None),
        ("minicpm3", 8 / 32, None),
        ("gemma2", 1.0, 5.0),
        ("olmo2", 1.0, None),
    ],
)
def test_the_scale_is_measured_whatever_it_is_called(
    family: str, scale: float, softcap: float | None, dtype: torch.dtype
) -> None:
    head = head_of(scaled(family, dtype))
    assert (head.scale, head.softcap) == (scale, softcap)


def test_a_scale_that_no_configuration_tells_is_measured_too() -> None:
    network = scaled("olmo2", torch.float32)
    network.lm_head.register_forward_hook(lambda module, arguments, logits: logits * 0.8)
    assert head_of(network).scale == pytest.approx(0.8, abs=1e-12)
    check_unproven(network)


def test_logits_that_are_neither_scaled_nor_capped_are_refused() -> None:
    network = scaled("olmo2", torch.float32)
    network.lm_head.register_forward_hook(lambda module, arguments, logits: logits.sign() * logits.abs().sqrt())
    with pytest.raises(ModelError, match="changes its logits"):
        check_unproven(network)


PER_LAYER = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
}


def saved(family: str, folder: Path, **changes: Any) -> str:
    scaled(family, torch.float32, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_model_that_looks_up_which_words_vectors_are_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="soft prompts do not work on this architecture yet") as caught:
        loaded_model(saved("gemma4_text", tmp_path, **PER_LAYER), None, "cpu")
    with pytest.raises(ModelError, match="soft prompts do not work on this architecture yet"):
        head_of(base_model.load(str(tmp_path), device="cpu").network)
    assert caught.value.got
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("family", ["granite", "cohere"])
def test_a_scaled_model_is_loaded(family: str, tmp_path: Path) -> None:
    base = base_model.load(saved(family, tmp_path), device="cpu", dtype="float32")
    assert base.family == family
    assert head_of(base.network).scale == (0.25 if family == "granite" else 0.0625)
