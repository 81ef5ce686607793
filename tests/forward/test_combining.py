"""The rules that combine what components say, against their definitions in plain probabilities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sordino.forward.combining import combine, nll_of_texts, responsible, sampling_logits
from sordino.prompts.mixture import RULES, Rule


def log_probabilities(*shape: int, seed: int = 0) -> Tensor:
    return torch.log_softmax(2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double(), -1)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_probabilities(rule: Rule) -> None:
    logp_BV = combine(log_probabilities(4, 3, 10), log_probabilities(4, 3, seed=1), rule)
    torch.testing.assert_close(logp_BV.exp().sum(-1), torch.ones(4).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_one_component_says_what_it_says(rule: Rule) -> None:
    said_V = log_probabilities(10)
    combined_V = combine(said_V[None], torch.zeros(1).double(), rule)
    if rule == "vote":
        assert combined_V.argmax() == said_V.argmax()
    else:
        torch.testing.assert_close(combined_V, said_V)


@pytest.mark.parametrize("rule", RULES)
def test_a_component_of_no_weight_is_not_heard(rule: Rule) -> None:
    said_KV = log_probabilities(3, 10)
    # And may give a word no probability at all.
    said_KV[2, 4] = -torch.inf
    weights_K = torch.tensor([0.3, 0.7, 0.0]).double()
    torch.testing.assert_close(combine(said_KV, weights_K.log(), rule), combine(said_KV[:2], weights_K[:2].log(), rule))


def test_means_of_probabilities_and_of_logits() -> None:
    said_KV, weights_K = log_probabilities(3, 10), torch.tensor([0.5, 0.3, 0.2]).double()
    by_hand_V = sum(w * p.exp() for w, p in zip(weights_K, said_KV, strict=True))
    torch.testing.assert_close(combine(said_KV, weights_K.log(), "probabilities").exp(), by_hand_V)
    raised_V = sum(w * (p + shift) for w, p, shift in zip(weights_K, said_KV, (1.0, -2.0, 5.0), strict=True))
    torch.testing.assert_close(combine(said_KV, weights_K.log(), "logits"), torch.log_softmax(raised_V, -1))


def test_votes_count_weights_and_ties_go_to_the_likelier() -> None:
    said_KV = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.1, 0.4]]).double().log()
    assert combine(said_KV, torch.full((3,), 1 / 3).double().log(), "vote").argmax() == 0
    assert combine(said_KV[:2], torch.full((2,), 1 / 2).double().log(), "vote").argmax() == 1
    assert combine(said_KV, torch.tensor([0.2, 0.7, 0.1]).double().log(), "vote").argmax() == 1


def test_token_by_token_is_the_whole_text() -> None:
    """p(y|x) = sum_k w_k p_k(y|x), whether it is written a token at a time or scored at once."""
    said_TKV, log_weights_K = log_probabilities(6, 3, 10), log_probabilities(3, seed=1)
    written_T = torch.tensor([1, 9, 4, 4, 0, 7])
    nll, now_K = torch.zeros(()).double(), log_weights_K
    for said_KV, token in zip(said_TKV, written_T, strict=True):
        nll = nll - combine(said_KV, now_K, "sequence")[token]
        now_K = responsible(now_K, said_KV[:, token])
    nll_K = -said_TKV.gather(2, written_T[:, None, None].expand(-1, 3, 1)).sum(0)[:, 0]
    torch.testing.assert_close(nll, nll_of_texts(nll_K, log_weights_K))
    torch.testing.assert_close(now_K, responsible(log_weights_K, -nll_K))


def test_what_nobody_can_have_said_teaches_nothing() -> None:
    log_weights_K = torch.tensor([0.25, 0.75]).log()
    torch.testing.assert_close(responsible(log_weights_K, torch.full((2,), -torch.inf)), log_weights_K)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_drawn_from_is_what_is_combined_at_the_components_level(rule: Rule) -> None:
    logits_KV = log_probabilities(3, 10) + torch.tensor([[3.0], [5.0], [-2.0]]).double()
    log_weights_K = torch.tensor([0.5, 0.5, 0.0]).double().log()
    logits_V, logp_KV = sampling_logits(logits_KV, log_weights_K, rule)
    torch.testing.assert_close(logp_KV, log_probabilities(3, 10))
    torch.testing.assert_close(
        torch.log_softmax(logits_V, -1), combine(logp_KV, log_weights_K, rule), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(torch.logsumexp(logits_V, -1), torch.tensor(4.0).double(), rtol=0, atol=1e-5)
    assert torch.equal(sampling_logits(logits_KV[:1], torch.zeros(1).double(), rule)[0], logits_KV[0])
