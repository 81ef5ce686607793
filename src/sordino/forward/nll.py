"""Negative log-likelihood of labelled tokens, with logits only where there is a label and only a tile at a time.

The output head is frozen, so what back-propagation needs from it is the gradient with respect to the hidden state alone:
(softmax(z) - onehot) @ W. It is computed in the forward pass while a tile's logits are in the processor's cache, so that the [N, V]
logits (200 MB for 1,024 tokens of SmolLM2) never exist and nothing is computed twice.

Shape key: N labelled tokens, n of them in a tile, D model width, V vocabulary, v words of it in a tile, m tokens whose target
is in the tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sordino.errors import ModelError
from sordino.forward.output_head import Finish, finish_of
from sordino.forward.prefix import (
    Prefixes,
    encode_and_forward,
    encode_prefixes,
    forward_as_one_row,
    forward_rows,
    one_row_pays,
    packable,
)
from sordino.forward.rows import Rows, rows_from_examples
from sordino.forward.small_matmul import times, widened
from sordino.forward.weighting import Spans
from sordino.models.loading import reading

# A tile of logits: at most 8 MB in float32, so that it stays in the shared cache for its product, softmax and gradient. A GPU waits
# for the launches of every tile, so it takes 128 MB.
ROWS, WORDS, WORDS_ON_GPU = 1024, 2048, 32768
# Networks of unproven families that passed the check. They are frozen, so once is enough.
_tried: WeakSet[PreTrainedModel] = WeakSet()


@dataclass(frozen=True)
class Head:
    """A frozen output head: logits = cap * tanh(scale * (h @ W.T + b) / cap), the cap only where the model has one."""

    weight_VD: Tensor
    bias_V: Tensor | None
    softcap: float | None
    scale: float = 1.0

    @property
    def width(self) -> int:
        """V, the size of the vocabulary."""
        return int(self.weight_VD.shape[0])

    def tile(self, start: int, end: int) -> Head:
        """The head for words `start` to `end` only."""
        bias_V = None if self.bias_V is None else self.bias_V[start:end]
        return Head(self.weight_VD[start:end], bias_V, self.softcap, self.scale)

    def slope(self, logits: Tensor) -> Tensor | None:
        """d logit / d uncapped scaled logit, from capped logits of any shape; None without a cap, where it is 1."""
        return None if self.softcap is None else 1 - (logits / self.softcap).square_()

    def logits_of_few(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] of a few rows in the model's dtype; not always contiguous."""
        return self._finished(times(widened(hidden_ND), self.weight_VD)[: len(hidden_ND)])

    def logits(self, hidden_ND: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Logits [N, V] in the model's dtype, written into `out` where one is given."""
        return self._finished(torch.mm(hidden_ND, self.weight_VD.t(), out=out))

    def _finished(self, logits_NV: Tensor) -> Tensor:
        """Bias, scale and cap, in place."""
        if self.bias_V is not None:
            logits_NV += self.bias_V
        if self.scale != 1:
            logits_NV *= self.scale
        if self.softcap is not None:
            logits_NV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_NV


def head_of(network: PreTrainedModel) -> Head:
    """The model's output head. A family that is in no parity test is checked first, once per network. Raises ModelError."""
    if not packable(network) and network not in _tried:
        check_unproven(network)
        _tried.add(network)
    return _head(network)


def _head(network: PreTrainedModel) -> Head:
    linear: Any = network.get_output_embeddings()
    # The parity tests cover what proven families do.
    proven = packable(network)
    finish = Finish(softcap=getattr(network.config, "final_logit_softcapping", None)) if proven else finish_of(network)
    return Head(linear.weight, getattr(linear, "bias", None), finish.softcap, finish.scale)


def check_unproven(network: PreTrainedModel) -> None:
    """Check a family that is in no parity test. Raises ModelError where soft prompts would not work.

    Some architectures use more than embeddings, or look up which words their vectors belong to, or transform their logits in a way
    that only their own forward pass knows.
    """
    with reading("soft prompts do not work on this architecture yet", network.config.model_type):
        off = _distance_to_own_logits(network)
    if not off < (1e-3 if network.dtype == torch.float32 else 0.05):
        raise ModelError(
            "soft prompts do not work on this architecture yet",
            where=network.config.model_type,
            expected="the logits of its own forward pass",
            got=f"logits that are off by {off:.0%}",
            do="choose a model of a family in docs/models.md",
        )


@torch.inference_mode()
def _distance_to_own_logits(network: PreTrainedModel) -> float:
    """How far logits are from the network's own, relative to their norm: the larger of two trials, text after a prefix of words and
    text after vectors that belong to no word."""
    ids = [1 + at % (network.config.get_text_config().vocab_size - 1) for at in range(0, 70, 7)]
    ids_T = torch.tensor(ids, device=network.device)
    words_TD = network.get_input_embeddings()(ids_T)
    between_PD = (words_TD[:3] - words_TD[3:6]) / 2**0.5
    off = []
    for prompt_PD, expected in (
        (words_TD[:3], {"input_ids": ids_T[None]}),
        (between_PD, {"inputs_embeds": torch.cat([between_PD, words_TD[3:]])[None]}),
    ):
        wanted_TV = network(**expected).logits[0, 2:].float()
        prefixes = encode_prefixes(network, [prompt_PD])
        rows = rows_from_examples([[ids[3:]]], [0]).to(network.device)
        hidden_TD = torch.cat([prefixes.last_KD, forward_rows(network, prefixes, rows)[0]])
        logits_TV = _head(network).logits(hidden_TD).float()
        off.append(float((logits_TV - wanted_TV).norm() / wanted_TV.norm()))
    # NaN counts as infinitely far.
    return max(off, key=lambda share: share if share == share else math.inf)


def nll_of_rows(network: PreTrainedModel, prefixes: Prefixes, rows: Rows, labelled_BT: Tensor) -> Tensor:
    """Float32 NLL in nats [N] of the labelled tokens, in row order. Differentiable towards `prefixes`.

    The first token of an example after an empty prefix has nothing to be predicted from and must not be labelled.
    """
    rows = rows.to(network.device)
    return _nll_of_hidden(network, prefixes.last_KD, forward_rows(network, prefixes, rows), rows, labelled_BT)


def nll_of_prompts_and_rows(
    network: PreTrainedModel, embeds: Sequence[Tensor], rows: Rows, labelled_BT: Tensor, spans: Spans = ()
) -> Tensor:
    """As `nll_of_rows` with `encode_prefixes(network, embeds, spans)`, for prompts that no other rows need."""
    rows = rows.to(network.device)
    if one_row_pays(network, embeds, rows, spans):
        first_BD, hidden_BTD = forward_as_one_row(network, embeds, rows)
        own = replace(rows, prompt_B=torch.arange(len(rows.prompt_B), device=network.device))
        return _nll_of_hidden(network, first_BD, hidden_BTD, own, labelled_BT)
    prefixes, hidden_BTD = encode_and_forward(network, embeds, rows, spans)
    return _nll_of_hidden(network, prefixes.last_KD, hidden_BTD, rows, labelled_BT)


def _nll_of_hidden(
    network: PreTrainedModel, first_KD: Tensor, hidden_BTD: Tensor, rows: Rows, labelled_BT: Tensor
) -> Tensor:
    """first_KD: the hidden states that predict the first tokens of rows with prefix k."""
    labelled_BT = labelled_BT.to(network.device)
    states = torch.cat([hidden_BTD.flatten(0, 1), first_KD])
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
        # One buffer for all tiles: new pages for every tile's logits would cost a third of the time of their product.
        words = WORDS_ON_GPU if hidden_ND.device.type == "cuda" else WORDS
        buffer = hidden_ND.new_empty(min(ROWS, hidden_ND.shape[0]) * min(words, head.width))
        for start in range(0, hidden_ND.shape[0], ROWS):
            rows = slice(start, start + ROWS)
            nll_N[rows] = _nll_of_tiles(
                head, hidden_ND[rows], targets_N[rows], None if grad_ND is None else grad_ND[rows], buffer, words
            )
        ctx.save_for_backward(grad_ND)
        return nll_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grads[0][:, None].to(grad_ND.dtype), None, None


def _nll_of_tiles(
    head: Head, hidden_nD: Tensor, targets_n: Tensor, grad_nD: Tensor | None, buffer: Tensor, words: int
) -> Tensor:
    """NLL [n]; its gradient into `grad_nD`. The softmax runs over the vocabulary a tile of `words` at a time.

    Running sums are relative to the largest logit so far, and are scaled down when a later tile has a larger one (Milakov &
    Gimelshein 2018, arXiv 1805.02867); the gradient is divided by the normaliser at the end.
    """
    exact = torch.promote_types(hidden_nD.dtype, torch.float32)
    count = hidden_nD.shape[0]
    targets_n1 = targets_n[:, None]
    largest_n1 = hidden_nD.new_full((count, 1), -math.inf, dtype=exact)
    total_n1, target_n1 = torch.zeros_like(largest_n1), torch.zeros_like(largest_n1)
    expected_nD = torch.zeros_like(hidden_nD, dtype=exact)
    for start in range(0, head.width, words):
        tile = head.tile(start, start + words)
        logits_nv = tile.logits(hidden_nD, out=buffer[: count * tile.width].view(count, tile.width)).to(exact)
        place_n1 = targets_n1 - start
        found_n1 = logits_nv.gather(1, place_n1.clamp(0, tile.width - 1))
        target_n1 = torch.where((place_n1 >= 0) & (place_n1 < tile.width), found_n1, target_n1)
        slope_nv = None if grad_nD is None else head.slope(logits_nv)
        larger_n1 = torch.maximum(largest_n1, logits_nv.amax(1, keepdim=True))
        shrunk_n1 = (largest_n1 - larger_n1).exp_()
        weights_nv = logits_nv.sub_(larger_n1).exp_()
        total_n1.mul_(shrunk_n1).add_(weights_nv.sum(1, keepdim=True))
        largest_n1 = larger_n1
        if grad_nD is None:
            continue
        if slope_nv is not None:
            weights_nv *= slope_nv
        expected_nD.mul_(shrunk_n1)
        if weights_nv.dtype == hidden_nD.dtype:
            expected_nD.addmm_(weights_nv, tile.weight_VD)
        else:
            # Where the model's dtype is narrower, the sum over tiles stays in float32.
            expected_nD += torch.mm(weights_nv.to(hidden_nD.dtype), tile.weight_VD)
    if grad_nD is not None:
        wanted_nD, slope_n1 = head.weight_VD[targets_n], head.slope(target_n1)
        grad_nD.copy_(expected_nD / total_n1 - (wanted_nD if slope_n1 is None else wanted_nD * slope_n1))
        if head.scale != 1:
            grad_nD *= head.scale
    return (total_n1.log() + largest_n1 - target_n1).squeeze(1)
