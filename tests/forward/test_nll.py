"""The frozen head's loss and gradient, tile by tile, against torch's cross entropy over whole logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, Olmo2Config

from sordino.errors import ModelError
from sordino.forward import nll as module
from sordino.forward.nll import Head, check_unproven, nll

N, D, V = 23, 12, 101


def case(*, bias: bool, softcap: float | None, dtype: torch.dtype, scale: float = 1.0):
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    head = Head((draw(V, D) * scale).to(dtype), draw(V).to(dtype) if bias else None, softcap)
    # First and last words, and borders of tiles, are among the targets.
    targets = torch.cat([torch.tensor([0, V - 1, 6, 7, 8]), torch.randint(V, (N - 5,), generator=random)])
    return head, draw(N, D).to(dtype), targets


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("rows", "words"), [(N, V), (5, 7), (1, 1), (64, 4096)])
def test_tiles_give_what_whole_logits_give(monkeypatch, bias, softcap, rows, words):
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(module, "WORDS", words)
    # Logits of some hundreds: a sum that did not follow its largest term would overflow.
    head, hidden, targets = case(bias=bias, softcap=softcap, dtype=torch.float64, scale=40.0)
    weight = torch.linspace(0.5, 2, N, dtype=torch.float64)
    ours, plain = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss = nll(head, ours, targets)
    logits = plain @ head.weight_VD.t() + (head.bias_V if bias else 0)
    expected = cross_entropy(
        logits if softcap is None else softcap * torch.tanh(logits / softcap), targets, reduction="none"
    )
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    (loss * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-10, atol=1e-10)


def test_without_gradients_the_loss_is_the_same(monkeypatch):
    monkeypatch.setattr(module, "WORDS", 7)
    head, hidden, targets = case(bias=False, softcap=3.0, dtype=torch.float64)
    assert torch.equal(nll(head, hidden, targets), nll(head, hidden.clone().requires_grad_(), targets))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("rows", "words"), [(N, V), (5, 7), (64, 4096)])
def test_soft_targets_give_the_cross_entropy_of_whole_logits(monkeypatch, bias, softcap, rows, words):
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(module, "WORDS", words)
    head, hidden, _ = case(bias=bias, softcap=softcap, dtype=torch.float64, scale=40.0)
    random = torch.Generator().manual_seed(1)
    # A word may be among a token's targets twice, and weights need not sum to one.
    targets = torch.randint(V, (N, 4), generator=random)
    targets[0] = torch.tensor([3, 3, 0, V - 1])
    weights = torch.rand(N, 4, generator=random, dtype=torch.float64)
    weights[1] = 0.0
    ours, plain = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss = nll(head, ours, targets, weights)
    logits = plain @ head.weight_VD.t() + (head.bias_V if bias else 0)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = -(weights * logits.log_softmax(1).gather(1, targets)).sum(1)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-11)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-10, atol=1e-10)


def test_one_target_of_weight_one_is_the_ordinary_loss():
    head, hidden, targets = case(bias=True, softcap=3.0, dtype=torch.float32)
    one, other = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    plain, soft = nll(head, one, targets), nll(head, other, targets[:, None], torch.ones(N, 1))
    assert torch.equal(plain, soft)
    plain.sum().backward()
    soft.sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-6)


def test_a_narrow_dtype_is_summed_in_float32(monkeypatch):
    monkeypatch.setattr(module, "WORDS", 7)
    head, hidden, targets = case(bias=False, softcap=None, dtype=torch.bfloat16)
    hidden.requires_grad_()
    loss = nll(head, hidden, targets)
    assert loss.dtype == torch.float32
    loss.sum().backward()
    exact = hidden.detach().double().requires_grad_()
    expected = cross_entropy(exact @ head.weight_VD.double().t(), targets, reduction="none")
    expected.sum().backward()
    # A logit in bfloat16 is off by up to 2^-9 of itself.
    torch.testing.assert_close(loss.double(), expected, rtol=0.01, atol=0.06)
    assert float((hidden.grad.double() - exact.grad).norm() / exact.grad.norm()) < 0.02


def test_a_family_that_is_in_no_parity_test_is_tried_first():
    proven = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    olmo = AutoModelForCausalLM.from_config(Olmo2Config(**proven, num_key_value_heads=2)).eval()
    check_unproven(olmo)
    # Its own forward pass does something to the logits that no configuration tells.
    olmo.lm_head.register_forward_hook(lambda module, arguments, logits: logits * 0.8)
    with pytest.raises(ModelError, match="do not work on this architecture"):
        check_unproven(olmo)
