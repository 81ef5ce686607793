"""The plain way, to hold the fast way against: one row at a time, prompt and text concatenated, no cache, the model's own masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sordino.forward.placement import prompt_embeds
from sordino.forward.token_losses import Context
from sordino.models.base_model import BaseModel


def plain_embeds(base: BaseModel, context: Context) -> Tensor:
    """[P, D]: what stands in front of a text, a prompt of vectors and the text after it."""
    ids = torch.tensor(context.ids, dtype=torch.long, device=base.device)
    return torch.cat([prompt_embeds(base, context.prompt), base.embed(ids)])


def plain_logits(network: PreTrainedModel, prompt_PD: Tensor, ids: Sequence[int]) -> Tensor:
    """Logits [P + T, V] of one row: the prompt's embeddings, then the text's, through the whole model at once."""
    embeds = network.get_input_embeddings()(torch.tensor([list(ids)], dtype=torch.long, device=network.device))
    both = torch.cat([prompt_PD.to(embeds.dtype)[None], embeds], dim=1)
    return network(inputs_embeds=both, use_cache=False).logits[0]


def plain_nll(network: PreTrainedModel, prompt_PD: Tensor, ids: Sequence[int], labelled: Sequence[bool]) -> Tensor:
    """NLL [N] of the labelled tokens of one row."""
    logits = plain_logits(network, prompt_PD, ids)[prompt_PD.shape[0] - 1 : -1] if len(prompt_PD) else None
    if logits is None:
        logits = plain_logits(network, prompt_PD, ids)[:-1]
        ids, labelled = ids[1:], labelled[1:]
    targets = torch.tensor(list(ids), device=network.device)
    nll = torch.nn.functional.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none"
    )
    return nll[torch.tensor(list(labelled), device=network.device)]
