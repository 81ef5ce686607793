"""Negative log-likelihood of labelled tokens, with logits only where there is a label and only a chunk at a time.

The output head is frozen, so what back-propagation needs from it is the gradient with respect to the hidden state alone:
(softmax(z) - onehot) @ W. It is taken in the forward pass while the chunk's logits are in the cache, so that the [N, V] logits
(200 MB for 1,024 tokens of SmolLM2) never exist and nothing is computed twice.

Shape key: N labelled tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sordino.errors import ModelError
from sordino.prefix import Prefixes, Rows, forward_rows

CHUNK = 256


@dataclass(frozen=True)
class Head:
    """A frozen output head: logits = cap * tanh((h @ W.T + b) / cap), the cap only where the model has one."""

    weight_VD: Tensor
    bias_V: Tensor | None
    softcap: float | None

    def logits(self, hidden_ND: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Logits [N, V] in the model's dtype, written into the first N rows of `out` where one is given."""
        into = None if out is None else out[: hidden_ND.shape[0]]
        logits_NV = torch.mm(hidden_ND, self.weight_VD.t(), out=into)
        if self.bias_V is not None:
            logits_NV += self.bias_V
        if self.softcap is not None:
            logits_NV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_NV


def head_of(network: PreTrainedModel) -> Head:
    """The model's output head. Raises ModelError for architectures that scale their logits in a way we do not know."""
    config = network.config
    for key in ("logit_scale", "logits_scaling", "lm_head_multiplier"):
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise ModelError("this architecture scales its logits", where=config.model_type, got=f"{key} in its config")
    linear: Any = network.get_output_embeddings()
    return Head(linear.weight, getattr(linear, "bias", None), getattr(config, "final_logit_softcapping", None))


def nll_of_rows(network: PreTrainedModel, prefixes: Prefixes, rows: Rows, labelled_BT: Tensor) -> Tensor:
    """Float32 NLL in nats [N] of the labelled tokens, in row order. Differentiable towards `prefixes`.

    A token that opens an example behind an empty prefix has nothing to be predicted from and must not be labelled.
    """
    rows = rows.to(network.device)
    labelled_BT = labelled_BT.to(network.device)
    hidden_BTD = forward_rows(network, prefixes, rows)
    states = torch.cat([hidden_BTD.flatten(0, 1), prefixes.last_KD])
    hidden_ND = states.index_select(0, rows.predictors()[labelled_BT])
    return nll(head_of(network), hidden_ND, rows.ids_BT[labelled_BT])


def nll(head: Head, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """NLL in nats [N] of `targets_N`, float32 (float64 for a float64 model)."""
    # torch ships no types for apply.
    apply: Any = _FrozenHeadNLL.apply
    result: Tensor = apply(hidden_ND, targets_N, head)
    return result


class _FrozenHeadNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, targets_N: Tensor, head: Head) -> Tensor:
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        nll_N = torch.empty(hidden_ND.shape[0], dtype=exact, device=hidden_ND.device)
        grad_ND = torch.empty_like(hidden_ND) if hidden_ND.requires_grad else None
        # One buffer for all chunks: fresh pages for every chunk's logits cost a third of the time of their product.
        buffer = hidden_ND.new_empty(min(CHUNK, hidden_ND.shape[0]), head.weight_VD.shape[0])
        for start in range(0, hidden_ND.shape[0], CHUNK):
            chunk = slice(start, start + CHUNK)
            targets_n1 = targets_N[chunk, None]
            logits_nV = head.logits(hidden_ND[chunk], out=buffer)
            slope_nV = None if grad_ND is None or head.softcap is None else 1 - (logits_nV / head.softcap).square_()
            logits_nV = logits_nV.to(exact)
            target_n1 = logits_nV.gather(1, targets_n1)
            # Softmax in place; its normaliser is divided out of the gradient, [n, D], instead of the [n, V] it came from.
            largest_n1 = logits_nV.amax(1, keepdim=True)
            weights_nV = logits_nV.sub_(largest_n1).exp_()
            total_n1 = weights_nV.sum(1, keepdim=True)
            nll_N[chunk] = (total_n1.log() + largest_n1 - target_n1).squeeze(1)
            if grad_ND is None:
                continue
            wanted_nD = head.weight_VD[targets_n1.squeeze(1)]
            if slope_nV is not None:
                wanted_nD = wanted_nD * slope_nV.gather(1, targets_n1)
                weights_nV *= slope_nV
            expected_nD = torch.mm(weights_nV.to(hidden_ND.dtype), head.weight_VD)
            grad_ND[chunk] = expected_nD / total_n1.to(hidden_ND.dtype) - wanted_nD
        ctx.save_for_backward(grad_ND)
        return nll_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grads[0][:, None].to(grad_ND.dtype), None, None
