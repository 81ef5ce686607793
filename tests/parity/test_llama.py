"""Llama's layers written out give what transformers' modules give, and are left alone where they would not."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sordino.forward import llama_layers, prefix
from sordino.forward.nll import nll_of_prompts_and_rows, nll_of_rows
from sordino.forward.prefix import encode_and_forward, encode_prefixes, forward_rows
from sordino.forward.rows import rows_from_examples
from tests.tiny_models import tiny

# Prompts of several lengths, one of them empty; rows padded, packed, and of one token.
LENGTHS = [4, 0, 9]
PACKING = [[[5, 6, 7, 8], [9, 10]], [[11] * 13], [[12, 13, 14]], [[15], [16, 17], [18, 19, 20]]]
PROMPT_OF_ROW = [0, 2, 1, 2]


def gradients(network, lengths, packing, prompt_of_row, *, together=False):
    """NLL of all tokens but an empty prompt's first ones, and the gradients of the prompts."""
    random = torch.Generator().manual_seed(3)
    width = network.get_input_embeddings().weight.shape[1]
    prompts = [
        (torch.randn(n, width, generator=random, dtype=torch.float64) * 0.5).to(network.dtype).requires_grad_()
        for n in lengths
    ]
    rows = rows_from_examples(packing, prompt_of_row)
    opens_nothing = (rows.offset_BT == 0) & (torch.tensor(lengths)[rows.prompt_B] == 0)[:, None]
    labelled = (rows.example_BT >= 0) & ~opens_nothing
    if together:
        nll = nll_of_prompts_and_rows(network, prompts, rows, labelled)
    else:
        nll = nll_of_rows(network, encode_prefixes(network, prompts), rows, labelled)
    return nll.detach(), torch.autograd.grad(nll.mean(), [prompt for prompt in prompts if prompt.numel()])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    ("lengths", "packing", "prompt_of_row"),
    [
        (LENGTHS, PACKING, PROMPT_OF_ROW),
        ([6], [[[5, 6, 7]] * 1] * 3, [0, 0, 0]),
        ([6], [[[5, 6, 7], [8, 9]], [[1]]], [0, 0]),
        ([3, 3], [[[5, 6, 7]], [[8, 9]]], [1, 0]),
    ],
)
def test_it_is_what_the_modules_compute(
    monkeypatch, dtype, tolerance, heads, together, lengths, packing, prompt_of_row
):
    network = tiny("llama", dtype=dtype, num_key_value_heads=heads)
    assert llama_layers.runs(network)
    fast, fast_gradients = gradients(network, lengths, packing, prompt_of_row, together=together)
    monkeypatch.setattr(prefix, "runs", lambda network: False)
    slow, slow_gradients = gradients(network, lengths, packing, prompt_of_row)
    assert float((fast - slow).norm() / slow.norm()) <= tolerance
    for one, other in zip(fast_gradients, slow_gradients, strict=True):
        assert float((one - other).norm() / other.norm()) <= tolerance


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("together", [False, True])
def test_in_bfloat16_it_is_as_near_to_the_truth_as_the_modules(monkeypatch, heads, together):
    """Roundings differ; neither side's are larger."""
    distances = []
    exact, exact_gradients = gradients(
        tiny("llama", dtype=torch.float64, num_key_value_heads=heads), LENGTHS, PACKING, PROMPT_OF_ROW
    )
    network = tiny("llama", dtype=torch.bfloat16, num_key_value_heads=heads)
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(prefix, "runs", lambda network: False)
        found, own = gradients(network, LENGTHS, PACKING, PROMPT_OF_ROW, together=together)
        pairs = [(found, exact), *zip(own, exact_gradients, strict=True)]
        distances.append([float((one.double() - other).norm() / other.norm()) for one, other in pairs])
    fast, slow = distances
    assert fast[0] < max(0.004, 1.5 * slow[0])
    assert all(one < max(0.04, 1.5 * other) for one, other in zip(fast[1:], slow[1:], strict=True))


@pytest.mark.parametrize("together", [False, True])
def test_gradients_reach_what_is_asked_of_prefixes_too(monkeypatch, together):
    """Some rows run beside the prompts, and others later after the same prefixes."""
    network = tiny("llama", dtype=torch.float64)
    found = []
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(prefix, "runs", lambda network: False)
        random = torch.Generator().manual_seed(4)
        prompts = [torch.randn(n, 32, generator=random, dtype=torch.float64).requires_grad_() for n in (3, 5)]
        first = rows_from_examples([[[5, 6, 7]], [[8, 9]]], [1, 0])
        later = rows_from_examples([[[1, 2]]], [1])
        if together:
            prefixes, hidden = encode_and_forward(network, prompts, first)
        else:
            prefixes = encode_prefixes(network, prompts)
            hidden = forward_rows(network, prefixes, first)
        loss = hidden[0].square().sum() + forward_rows(network, prefixes, later).sum() + prefixes.last_KD.square().sum()
        found.append(torch.cat(torch.autograd.grad(loss, prompts)))
    assert float((found[0] - found[1]).norm() / found[1].norm()) <= 1e-10


def test_other_models_are_left_to_transformers():
    assert not llama_layers.runs(tiny("qwen3"))
    assert not llama_layers.runs(tiny("llama", dtype=torch.float16))
    assert not llama_layers.runs(tiny("llama", attention_bias=True))
    assert not llama_layers.runs(tiny("llama", hidden_act="gelu"))
    adapted = tiny("llama")
    get_peft_model(adapted, LoraConfig(r=2, target_modules=["v_proj"]))
    assert not llama_layers.runs(adapted)
