"""The predictions of a mixture's components combined: the rules of `prompts.mixture`, on tensors.

Everything is in log space, float32 at least. Shape key: K components, V vocabulary, N examples; `...` are batch dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sordino.prompts.mixture import Rule

# The share of a vote that the mean probability decides: enough to break ties and no more.
_TIE = 1e-6


def combine(logp_KV: Tensor, log_weights_K: Tensor, rule: Rule) -> Tensor:
    """Log-probabilities [..., V] of the next token, from each component's [..., K, V] and log weights [..., K].

    For the rule "sequence" the weights must be the current ones: `responsible` updates them after each token.
    """
    log_weights_K1 = log_weights_K.to(logp_KV.dtype).unsqueeze(-1)
    if rule == "logits":
        # A component of weight zero is left out: zero times minus infinity is NaN.
        weighted_KV = torch.where(log_weights_K1.isneginf(), 0.0, log_weights_K1.exp() * logp_KV)
        return torch.log_softmax(weighted_KV.sum(-2), dim=-1)
    mean_V = torch.logsumexp(logp_KV + log_weights_K1, dim=-2)
    if rule == "vote":
        first_K1 = logp_KV.argmax(-1, keepdim=True)
        votes_KV = torch.zeros_like(logp_KV).scatter_(-1, first_K1, log_weights_K1.exp())
        return ((1 - _TIE) * votes_KV.sum(-2) + _TIE * mean_V.exp()).log()
    return mean_V


def sampling_logits(logits_KV: Tensor, log_weights_K: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Logits [..., V] to sample from, and each component's log-probabilities [..., K, V]; from logits [..., K, V].

    The logits are those of `combine`, shifted to the mean level of the components' own: a repetition penalty depends on the sign of
    a logit, so components that agree must give what each of them gives. A single component's logits stay the same.
    """
    logp_KV = torch.log_softmax(logits_KV, dim=-1)
    if logits_KV.shape[-2] == 1:
        return logits_KV[..., 0, :], logp_KV
    level_K = torch.logsumexp(logits_KV, dim=-1)
    level_1 = (log_weights_K.to(level_K.dtype).exp() * level_K).sum(-1, keepdim=True)
    return combine(logp_KV, log_weights_K, rule) + level_1, logp_KV


def responsible(log_weights_K: Tensor, logp_K: Tensor) -> Tensor:
    """Log weights [..., K] after a token, or a text, to which the components give `logp_K`: r_k in proportion to w_k p_k."""
    joint_K = log_weights_K + logp_K.to(log_weights_K.dtype)
    total_1 = torch.logsumexp(joint_K, dim=-1, keepdim=True)
    # A token that no component can have written changes nothing.
    return torch.where(total_1.isneginf(), log_weights_K, joint_K - total_1)


def nll_of_texts(nll_NK: Tensor, log_weights_NK: Tensor) -> Tensor:
    """NLL in nats [N] of whole texts under the rule "sequence": -log sum_k w_k exp(-nll_k)."""
    return -torch.logsumexp(log_weights_NK - nll_NK, dim=-1)
