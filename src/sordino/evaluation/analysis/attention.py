"""How much of a text's attention goes to the soft prompt in front of it, by layer and by virtual token.

The softmax weights of text positions on the prompt's positions, averaged over heads and text positions. They show where a layer
attends, not what that does: a sink takes much attention and adds little (Xiao et al. 2023, arXiv 2309.17453). What a virtual token
does for the loss is in `losses`.

The pass is plain: prompt and text concatenated, the network's own masks unless the prompt is held, and transformers' eager
attention, which is the only one that returns weights. It runs on a second network that shares the weights, so that the given one
is not changed.

Shape key: L layers, B rows, H heads, S positions, P virtual tokens, D model width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sordino.errors import ModelError
from sordino.forward.masks import held_masks
from sordino.forward.packing import row_example
from sordino.forward.placement import leading_ids, prompt_embeds, span_in
from sordino.forward.prefix import check_spans
from sordino.forward.weighting import PromptSpan
from sordino.models.base_model import BaseModel
from sordino.models.memory import memory_errors
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.texts.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# All layers' weights of a row of 150 positions are 24 MB on SmolLM2-135M.
_ROWS_A_PASS = 4


@dataclass(frozen=True)
class Attention:
    """shares_LP: mean attention of text positions on each virtual token, by layer. bos_L: on BOS, 0 without one. positions: text
    positions in the mean.
    """

    shares_LP: NDArray[np.float64]
    bos_L: NDArray[np.float64]
    positions: int

    @property
    def by_layer_L(self) -> NDArray[np.float64]:
        """Share on the whole prompt, 0 to 1."""
        found: NDArray[np.float64] = self.shares_LP.sum(axis=1)
        return found

    @property
    def by_token_P(self) -> NDArray[np.float64]:
        """Share on each virtual token, the mean over layers."""
        found: NDArray[np.float64] = self.shares_LP.mean(axis=0)
        return found


def attention(base: BaseModel, prompt: SoftPrompt, windows: Sequence[Example]) -> Attention:
    """The attention of the windows on the prompt; of an encoder-decoder, of their inputs in the encoder.

    Raises ModelError where the network returns no attention, OutOfMemory.
    """
    network = eager_twin(base.network)
    if base.encoder_decoder is not None:
        return _of_encoder(base, network, prompt, windows)
    front_PD = prompt_embeds(base, prompt).to(device=base.device, dtype=base.dtype)
    span = span_in(base, prompt)
    check_spans(base.network, [span])
    leading = leading_ids(base, prompt.metadata.placement)
    before = int(front_PD.shape[0]) - prompt.n_tokens
    start = int(front_PD.shape[0]) + len(leading)
    total_LS: Tensor | None = None
    positions = 0
    with memory_errors("measuring attention", "give a smaller --limit or --row-tokens"), torch.inference_mode():
        for at in range(0, len(windows), _ROWS_A_PASS):
            texts = [window.ids for window in windows[at : at + _ROWS_A_PASS]]
            summed_LS = _summed(base, network, (front_PD, span), leading, texts)[:, :start].double().cpu()
            total_LS = summed_LS if total_LS is None else total_LS + summed_LS
            positions += sum(len(ids) for ids in texts)
    if total_LS is None:
        raise ModelError("there is no text to measure", where=base.name)
    shares_LS = (total_LS / positions).numpy()
    others = [*range(before), *range(before + prompt.n_tokens, start)]
    return Attention(shares_LS[:, before : before + prompt.n_tokens], shares_LS[:, others].sum(axis=1), positions)


@torch.inference_mode()
def _of_encoder(base: BaseModel, network: Any, prompt: SoftPrompt, windows: Sequence[Example]) -> Attention:
    front_PD = prompt_embeds(base, prompt).to(device=base.device, dtype=base.dtype)
    leading = leading_ids(base, prompt.metadata.placement)
    before, width = len(front_PD) - prompt.n_tokens, len(front_PD)
    total_LS, positions = torch.zeros(base.n_layers, width + len(leading), dtype=torch.float64), 0
    for window in windows:
        row = row_example(base, window, leading)
        assert row.input is not None
        read_TD = base.embed(torch.tensor(row.ids[: row.input], dtype=torch.long, device=base.device))
        found = network.get_encoder()(inputs_embeds=torch.cat([front_PD, read_TD])[None], output_attentions=True)
        if not found.attentions or any(weights is None for weights in found.attentions):
            raise ModelError("this architecture does not return its attention", where=base.family)
        weights_LSS = torch.stack([weights_1HSS[0].mean(0) for weights_1HSS in found.attentions]).double().cpu()
        total_LS += weights_LSS[:, width + len(leading) :, : width + len(leading)].sum(1)
        positions += row.input - len(leading)
    shares_LS = (total_LS / max(positions, 1)).numpy()
    others = [*range(before), *range(width, width + len(leading))]
    return Attention(shares_LS[:, before:width], shares_LS[:, others].sum(axis=1), positions)


def eager_twin(network: PreTrainedModel) -> PreTrainedModel:
    """A second network with eager attention that shares the weights in memory."""
    from transformers import PreTrainedModel

    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    twin = copy.deepcopy(network, shared)
    for part in twin.modules():
        # Each by itself: transformers 5.19 leaves out parts whose configuration is of the network's own class, as T5's encoder.
        if isinstance(part, PreTrainedModel):
            part.set_attn_implementation("eager")
    return twin


def _summed(
    base: BaseModel,
    network: PreTrainedModel,
    front: tuple[Tensor, PromptSpan | None],
    leading: Sequence[int],
    texts: Sequence[Sequence[int]],
) -> Tensor:
    """Attention [L, S] on every position, summed over text positions and averaged over heads. front: [P, D], and its prompt."""
    front_PD, span = front
    width = max(len(ids) for ids in texts)
    # Padded on the right, where no text position attends.
    padded = [[*leading, *ids, *[0] * (width - len(ids))] for ids in texts]
    text_BTD = base.embed(torch.tensor(padded, device=base.device))
    embeds_BSD = torch.cat([front_PD.expand(len(texts), -1, -1), text_BTD], dim=1)
    masks = None if span is None else held_masks(network, span, embeds_BSD.shape[1])
    attentions = network.base_model(
        inputs_embeds=embeds_BSD, attention_mask=masks, use_cache=False, output_attentions=True
    ).attentions
    if not attentions or any(weights is None for weights in attentions):
        raise ModelError("this architecture does not return its attention", where=base.family)
    start = embeds_BSD.shape[1] - width
    exact = torch.promote_types(base.dtype, torch.float32)
    is_text_BT = torch.zeros(len(texts), width, device=base.device, dtype=exact)
    for row, ids in enumerate(texts):
        is_text_BT[row, : len(ids)] = 1
    return torch.stack(
        [
            torch.einsum("bts,bt->s", weights_BHSS[:, :, start:].to(is_text_BT.dtype).mean(dim=1), is_text_BT)
            for weights_BHSS in attentions
        ]
    )
