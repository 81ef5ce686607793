"""Negative log-likelihood of labelled tokens, with logits only where there is a label and only a tile at a time.

The output head is frozen, so what back-propagation needs from it is the gradient with respect to the hidden state alone:
(softmax(z) - onehot) @ W. It is computed in the forward pass while a tile's logits are in the processor's cache, so that the [N, V]
logits (200 MB for 1,024 tokens of SmolLM2) never exist and nothing is computed twice.

A token may have several targets with weights, as a teacher's probabilities: its loss is then the cross entropy
-sum_k w_k log softmax(z)_k, with the gradient (sum_k w_k softmax(z) - sum_k w_k onehot_k) @ W. NLL is one target of weight 1.

Shape key: N labelled tokens, n of them in a tile, D model width, V vocabulary, v words of it in a tile, k targets of a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from sordino.errors import ModelError
from sordino.forward.encoder_decoder import AnyPrefixes, InputPrefixes, decode, encode, states_before_targets
from sordino.forward.one_row import forward_as_one_row, one_row_pays
from sordino.forward.output_head import Finish, added_bias, finish_of
from sordino.forward.output_head import Head as Head
from sordino.forward.prefix import encode_and_forward, encode_prefixes, forward_rows, packable
from sordino.forward.rows import Rows, rows_from_examples
from sordino.forward.weighting import Spans
from sordino.models.loading import reading
from sordino.texts.example_store import SoftTargets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A tile of logits: at most 8 MB in float32, so that it stays in the shared cache for its product, softmax and gradient. A GPU waits
# for the launches of every tile, so it takes 128 MB.
ROWS, WORDS, WORDS_ON_GPU = 1024, 2048, 32768
# Networks of unproven families that passed the check. They are frozen, so once is enough.
_tried: WeakSet[PreTrainedModel] = WeakSet()


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
    own_V, added_V = getattr(linear, "bias", None), added_bias(network)
    return Head(linear.weight, own_V if added_V is None else added_V, finish.softcap, finish.scale)


def check_unproven(network: PreTrainedModel) -> None:
    """Check a family that is in no parity test. Raises ModelError where soft prompts would not work.

    Some architectures use more than embeddings, or look up which words their vectors belong to, or transform their logits in a way
    that only their own forward pass knows.
    """
    with reading("soft prompts do not work on this architecture yet", network.config.model_type):
        off = (_distance_of_decoder if network.config.is_encoder_decoder else _distance_to_own_logits)(network)
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
    return _largest(off)


@torch.inference_mode()
def _distance_of_decoder(network: PreTrainedModel) -> float:
    """As `_distance_to_own_logits`, of a decoder behind an encoder that reads words, and vectors that belong to no word."""
    ids_T = torch.arange(1, 10, device=network.device)
    words_TD = network.get_input_embeddings()(ids_T)
    off = []
    for prompt_PD in (words_TD[:3], (words_TD[:3] - words_TD[3:6]) / 2**0.5):
        read = torch.cat([prompt_PD, words_TD[3:6]])[None]
        wanted_TV = network(inputs_embeds=read, decoder_input_ids=ids_T[None]).logits[0].float()
        encoded = encode(network, InputPrefixes((prompt_PD,)), [0], [ids_T[3:6]])
        logits_TV = _head(network).logits(decode(network, encoded, ids_T[None])[0]).float()
        off.append(float((logits_TV - wanted_TV).norm() / wanted_TV.norm()))
    return _largest(off)


def _largest(off: Sequence[float]) -> float:
    # NaN counts as infinitely far.
    return max(off, key=lambda share: share if share == share else math.inf)


def nll_of_rows(
    network: PreTrainedModel, prefixes: AnyPrefixes, rows: Rows, labelled_BT: Tensor, soft: SoftTargets | None = None
) -> Tensor:
    """Float32 NLL in nats [N] of the labelled tokens, in row order. Differentiable towards `prefixes`.

    soft: what is predicted in place of the labelled tokens themselves, in row order; the result is then the cross entropy. The
    first token of an example after an empty prefix has nothing to be predicted from and must not be labelled.
    """
    rows = rows.to(network.device)
    return _loss_of(network, states_before(network, prefixes, rows, labelled_BT), rows, labelled_BT, soft)


def states_before(network: PreTrainedModel, prefixes: AnyPrefixes, rows: Rows, labelled_BT: Tensor) -> Tensor:
    """The hidden states [N, D] that predict the labelled tokens, in row order. Differentiable towards `prefixes`."""
    if isinstance(prefixes, InputPrefixes):
        return states_before_targets(network, prefixes, rows, labelled_BT)
    return predicting(prefixes.last_KD, forward_rows(network, prefixes, rows), rows, labelled_BT)


def nll_of_prompts_and_rows(
    network: PreTrainedModel,
    embeds: Sequence[Tensor],
    rows: Rows,
    labelled_BT: Tensor,
    spans: Spans = (),
    soft: SoftTargets | None = None,
) -> Tensor:
    """As `nll_of_rows` with `encode_prefixes(network, embeds, spans)`, for prompts that no other rows need."""
    rows = rows.to(network.device)
    if one_row_pays(network, embeds, rows, spans):
        first_BD, hidden_BTD = forward_as_one_row(network, embeds, rows)
        own = replace(rows, prompt_B=torch.arange(len(rows.prompt_B), device=network.device))
        hidden_ND = predicting(first_BD, hidden_BTD, own, labelled_BT)
    else:
        prefixes, hidden_BTD = encode_and_forward(network, embeds, rows, spans)
        hidden_ND = predicting(prefixes.last_KD, hidden_BTD, rows, labelled_BT)
    return _loss_of(network, hidden_ND, rows, labelled_BT, soft)


def predicting(first_KD: Tensor, hidden_BTD: Tensor, rows: Rows, labelled_BT: Tensor) -> Tensor:
    """The hidden states [N, D] that predict the labelled tokens. first_KD: those of the first tokens of rows with prefix k."""
    states = torch.cat([hidden_BTD.flatten(0, 1), first_KD])
    return states.index_select(0, rows.predictors()[labelled_BT.to(states.device)])


def _loss_of(
    network: PreTrainedModel, hidden_ND: Tensor, rows: Rows, labelled_BT: Tensor, soft: SoftTargets | None
) -> Tensor:
    if soft is None:
        return nll(head_of(network), hidden_ND, rows.ids_BT[labelled_BT.to(network.device)])
    ids_Nk, weights_Nk = (torch.from_numpy(array).to(network.device) for array in (soft.ids_Nk, soft.weights_Nk))
    return nll(head_of(network), hidden_ND, ids_Nk, weights_Nk)


def nll(head: Head, hidden_ND: Tensor, targets: Tensor, weights_Nk: Tensor | None = None) -> Tensor:
    """NLL in nats [N] of the targets [N], float32 (float64 for a float64 model).

    weights_Nk: of several targets [N, k]; the result is then the cross entropy. One of weight 0 costs no more than others.
    """
    # torch ships no types for apply.
    apply: Any = _FrozenHeadNLL.apply
    targets_Nk = targets[:, None] if targets.dim() == 1 else targets
    result: Tensor = apply(hidden_ND, targets_Nk, weights_Nk, head)
    return result


class _FrozenHeadNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, targets_Nk: Tensor, weights_Nk: Tensor | None, head: Head) -> Tensor:
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        nll_N = torch.empty(hidden_ND.shape[0], dtype=exact, device=hidden_ND.device)
        grad_ND = torch.empty_like(hidden_ND) if hidden_ND.requires_grad else None
        # One buffer for all tiles: new pages for every tile's logits would cost a third of the time of their product.
        words = WORDS_ON_GPU if hidden_ND.device.type == "cuda" else WORDS
        buffer = hidden_ND.new_empty(min(ROWS, hidden_ND.shape[0]) * min(words, head.width))
        for start in range(0, hidden_ND.shape[0], ROWS):
            rows = slice(start, start + ROWS)
            wanted = _Wanted(head, targets_Nk[rows], None if weights_Nk is None else weights_Nk[rows].to(exact))
            nll_N[rows] = _nll_of_tiles(
                wanted, hidden_ND[rows], None if grad_ND is None else grad_ND[rows], buffer, words
            )
        ctx.save_for_backward(grad_ND)
        return nll_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grads[0][:, None].to(grad_ND.dtype), None, None, None


@dataclass(frozen=True)
class _Wanted:
    """What a head should predict. weights_nk: None for one target of weight 1."""

    head: Head
    targets_nk: Tensor
    weights_nk: Tensor | None

    @property
    def mass_n1(self) -> Tensor | float:
        return 1.0 if self.weights_nk is None else self.weights_nk.sum(1, keepdim=True)

    def logit(self, logits_nk: Tensor) -> Tensor:
        """The weighted sum [n, 1] of the targets' logits."""
        return logits_nk if self.weights_nk is None else (self.weights_nk * logits_nk).sum(1, keepdim=True)

    def pull(self, logits_nk: Tensor) -> Tensor:
        """The gradient [n, D] of `logit`, the head's scale left out."""
        weight_VD, slope_nk = self.head.weight_VD, self.head.slope(logits_nk)
        if self.weights_nk is None:
            wanted_nD = weight_VD[self.targets_nk[:, 0]]
            return wanted_nD if slope_nk is None else wanted_nD * slope_nk
        factor_nk = self.weights_nk if slope_nk is None else self.weights_nk * slope_nk
        # Without the [n, k, D] rows in between.
        return embedding_bag(self.targets_nk, weight_VD, per_sample_weights=factor_nk.to(weight_VD.dtype), mode="sum")


def _nll_of_tiles(wanted: _Wanted, hidden_nD: Tensor, grad_nD: Tensor | None, buffer: Tensor, words: int) -> Tensor:
    """NLL [n]; its gradient into `grad_nD`. The softmax runs over the vocabulary a tile of `words` at a time.

    Running sums are relative to the largest logit so far, and are scaled down when a later tile has a larger one (Milakov &
    Gimelshein 2018, arXiv 1805.02867); the gradient is divided by the normaliser at the end.
    """
    exact = torch.promote_types(hidden_nD.dtype, torch.float32)
    count, head, targets_nk = hidden_nD.shape[0], wanted.head, wanted.targets_nk
    largest_n1 = hidden_nD.new_full((count, 1), -math.inf, dtype=exact)
    total_n1, target_nk = torch.zeros_like(largest_n1), largest_n1.new_zeros(targets_nk.shape)
    expected_nD = torch.zeros_like(hidden_nD, dtype=exact)
    for start in range(0, head.width, words):
        tile = head.tile(start, start + words)
        logits_nv = tile.logits(hidden_nD, out=buffer[: count * tile.width].view(count, tile.width)).to(exact)
        place_nk = targets_nk - start
        found_nk = logits_nv.gather(1, place_nk.clamp(0, tile.width - 1))
        target_nk = torch.where((place_nk >= 0) & (place_nk < tile.width), found_nk, target_nk)
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
        grad_nD.copy_(expected_nD / total_n1 * wanted.mass_n1 - wanted.pull(target_nk))
        if head.scale != 1:
            grad_nD *= head.scale
    return (wanted.mass_n1 * (total_n1.log() + largest_n1) - wanted.logit(target_nk)).squeeze(1)
