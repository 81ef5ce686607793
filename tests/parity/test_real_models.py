"""The same parity on real weights: SmolLM2, and Gemma 3 270M with more text than its window of 512."""

from __future__ import annotations

import copy
import json
import zipfile

import numpy as np
import pytest
import torch

from sordino.formats import read
from sordino.forward.nll import head_of, nll_of_rows
from sordino.forward.placement import prefix_embeds, prompt_embeds
from sordino.forward.prefix import encode_prefixes, forward_rows
from sordino.forward.rows import rows_from_examples
from sordino.models import base_model
from tests.parity.plain import plain_logits, plain_nll
from tests.tiny_models import tiny

TEXT = (
    "The wind is in the north and the glass is falling, and Herself was lit at four and burned true until the morning. "
)


def _losses_and_gradients(base, lengths, tokens=20):
    """(loss, gradient) the fast way in the model's dtype, and by plain concatenation in float64.

    In float32 plain concatenation itself is off by 2e-5 in the loss and 1e-4 in the gradient on SmolLM2 (the unmasked
    attention kernel rounds more), which would be held against the wrong side.
    """
    ids = base.encode(TEXT * 60)
    texts = [ids[start : start + length] for start, length in enumerate(lengths)]
    noise = torch.randn(tokens, base.d_model, generator=torch.Generator().manual_seed(0)) * (0.1 * base.embedding_rms)
    matrix = (base.embed(torch.tensor(ids[:tokens])).float() + noise).detach().requires_grad_()

    prefixes = encode_prefixes(base.network, [prefix_embeds(base, matrix, base.placement)])
    rows = rows_from_examples([[ids] for ids in texts], [0] * len(texts))
    fast = nll_of_rows(base.network, prefixes, rows, rows.example_BT >= 0).mean()
    (fast_gradient,) = torch.autograd.grad(fast, matrix)

    exact = base.network if base.network.dtype == torch.float64 else copy.deepcopy(base.network).double()
    bos = base.embed(torch.tensor(base.bos_ids, dtype=torch.long)).double()
    embeds = torch.cat([bos, matrix.double()])
    plain = torch.cat([plain_nll(exact, embeds, ids, [True] * len(ids)) for ids in texts]).mean()
    (plain_gradient,) = torch.autograd.grad(plain, matrix)
    return fast.item(), fast_gradient, plain.item(), plain_gradient


def test_smollm2_equals_plain_concatenation(smollm2):
    fast, fast_gradient, plain, plain_gradient = _losses_and_gradients(smollm2, [30, 7, 64])
    assert fast == pytest.approx(plain, abs=1e-5)
    assert ((plain_gradient - fast_gradient).norm() / plain_gradient.norm()).item() <= 1e-5


@pytest.mark.slow
def test_gemma_equals_plain_concatenation_beyond_its_window():
    """Both ways in float64. In float32 the fast way's gradient is 6e-5 off this reference, above the 1e-5 that is wanted: open."""
    base = base_model.load("gemma3-270m", device="cpu", dtype="float32")
    assert base.bos_ids
    assert base.placement == "after_bos"
    assert base.network.config.sliding_window == 512
    base.network.double()
    fast, fast_gradient, plain, plain_gradient = _losses_and_gradients(base, [540, 20])
    assert fast == pytest.approx(plain, abs=1e-5)
    assert ((plain_gradient - fast_gradient).norm() / plain_gradient.norm()).item() <= 1e-5


def test_a_koboldai_file_of_gpt_j_width_gives_the_logits_of_plain_concatenation(tmp_path):
    matrix = np.random.default_rng(0).normal(size=(80, 4096), scale=0.02).astype(np.float32)
    with zipfile.ZipFile(tmp_path / "old.zip", "w") as archive:
        with archive.open("tensor.npy", "w") as member:
            np.save(member, matrix)
        archive.writestr("meta.json", json.dumps({"name": "Old", "supported": ["Generic 6B"], "description": ""}))
    prompt = read(tmp_path / "old.zip")
    assert prompt.metadata.placement == "start"
    network = tiny("gptj", dtype=torch.float32, n_embd=4096, n_head=16, n_layer=2, rotary_dim=64, n_inner=1024)
    ids = list(range(40, 60))
    embeds = torch.from_numpy(prompt.matrix.copy())
    with torch.no_grad():
        hidden = forward_rows(network, encode_prefixes(network, [embeds]), rows_from_examples([[ids]], [0]))
        ours = head_of(network).logits(hidden[0])
        plain = plain_logits(network, embeds, ids)[80:]
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


def test_prompt_embeds_of_no_prompt_is_the_models_own_beginning(smollm2):
    assert prompt_embeds(smollm2, None).shape == (0, smollm2.d_model)
