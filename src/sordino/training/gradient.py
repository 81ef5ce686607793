"""One step's loss and gradient, and validation's loss: the only places where training touches the base model.

The prompt is run once a step, beside the text where the step is one pass. Where it is cut into several, the prompt's keys and
values are leaves that every pass adds its gradient to, and are back-propagated once at the end. Counted in FLOPs a step costs
4N a token (2N forward, 2N for the gradient of the activations; the weights are frozen), so twice a forward pass is the floor.

Shape key: P virtual tokens, D model width, N labelled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sordino.forward.nll import nll_of_prompts_and_rows, nll_of_rows
from sordino.forward.packing import LabelledRows, best_packing, labelled_rows, one_by_one, passes, with_leading_ids
from sordino.forward.placement import leading_ids, prefix_embeds
from sordino.forward.prefix import encode_prefixes, packable
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Placement
from sordino.texts.examples import Example


def loss_and_gradient(
    base: BaseModel, matrix_PD: Tensor, placement: Placement, examples: Sequence[Example], *, pass_tokens: int
) -> float:
    """Mean NLL in nats over the examples' labelled tokens; its gradient is added to what `matrix_PD` was computed from."""
    embeds_PD = prefix_embeds(base, matrix_PD, placement)
    parts = packed_passes(base, placement, examples, embeds_PD.shape[0], pass_tokens=pass_tokens)
    count = sum(sum(example.labelled) for example in examples)
    if len(parts) == 1:
        loss = nll_of_prompts_and_rows(base.network, [embeds_PD], parts[0].rows, parts[0].labelled_BT).sum() / count
        loss.backward()
        return loss.item()
    prefixes = encode_prefixes(base.network, [embeds_PD])
    leaves = prefixes.as_leaves()
    total = 0.0
    for part in parts:
        share = nll_of_rows(base.network, leaves.to(base.dtype), part.rows, part.labelled_BT).sum() / count
        share.backward()
        total += share.item()
    prefixes.backward(leaves)
    return total


@torch.no_grad()
def mean_nll(
    base: BaseModel, matrix_PD: Tensor, placement: Placement, examples: Sequence[Example], *, pass_tokens: int
) -> float:
    """Mean NLL in nats over the examples' labelled tokens."""
    prefixes = encode_prefixes(base.network, [prefix_embeds(base, matrix_PD, placement)])
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    for packed in packed_passes(base, placement, examples, prefixes.width, pass_tokens=pass_tokens):
        nll_N = nll_of_rows(base.network, prefixes, packed.rows, packed.labelled_BT)
        # Moved first: Apple's GPUs have no float64.
        total += nll_N.cpu().double().sum()
        count += nll_N.numel()
    return float(total) / count


def packed_passes(
    base: BaseModel, placement: Placement | None, examples: Sequence[Example], prefix_length: int, *, pass_tokens: int
) -> list[LabelledRows]:
    """The examples as packed rows behind prefix 0, in forward passes of at most `pass_tokens` positions."""
    led = [with_leading_ids(example, leading_ids(base, placement)) for example in examples]
    lengths = [len(example.ids) for example in led]
    groups = best_packing(lengths, prefix_length) if packable(base.network) else one_by_one(lengths)
    return [labelled_rows(led, part, [0] * len(part)) for part in passes(groups, lengths, pass_tokens)]
