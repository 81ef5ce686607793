"""How likely a model finds each token of a text behind a soft prompt, and which words it finds likeliest there.

Shape key: T tokens of the text after its first, n of them at a time, k likeliest words, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sordino.forward.nll import head_of, predicting
from sordino.forward.packing import labelled_rows, with_leading_ids
from sordino.forward.placement import encode_prompts, leading_ids
from sordino.forward.prefix import forward_rows
from sordino.models.base_model import BaseModel
from sordino.models.memory import memory_errors
from sordino.prompts.prompt import Prompt
from sordino.texts.example_store import Example

# Rows whose logits are held at once.
_AT_ONCE = 64


@dataclass(frozen=True)
class ScoredText:
    """Log probabilities in nats [T] of a text's tokens after its first; ids and log probabilities of the likeliest words [T, k]."""

    logp_T: Tensor
    likeliest_Tk: Tensor
    likeliest_logp_Tk: Tensor


@torch.inference_mode()
def score_text(base: BaseModel, prompt: Prompt | None, ids: Sequence[int], k: int) -> ScoredText:
    """ids: without BOS. The caller checks that they fit the model's context. Raises DoesNotFit, ConfigError, OutOfMemory."""
    if len(ids) < 2:
        return ScoredText(torch.zeros(0), torch.zeros(0, k, dtype=torch.long), torch.zeros(0, k))
    labelled = (False, *(True,) * (len(ids) - 1))
    leading = leading_ids(base, prompt.metadata.placement if prompt else None)
    packed = labelled_rows([with_leading_ids(Example(tuple(ids), labelled, ""), leading)], [[0]], [0])
    parts = []
    with memory_errors("scoring a text", "send a shorter one"):
        prefixes, rows = encode_prompts(base, [prompt]), packed.rows.to(base.device)
        hidden_BTD = forward_rows(base.network, prefixes, rows)
        hidden_TD = predicting(prefixes.last_KD, hidden_BTD, rows, packed.labelled_BT)
        target_T = torch.tensor(ids[1:], device=base.device)
        head = head_of(base.network)
        for hidden_nD, target_n in zip(hidden_TD.split(_AT_ONCE), target_T.split(_AT_ONCE), strict=True):
            logits_nV = head.logits(hidden_nD)
            logp_nV = torch.log_softmax(logits_nV.to(torch.promote_types(logits_nV.dtype, torch.float32)), dim=1)
            top = logp_nV.topk(k, dim=1)
            parts.append((logp_nV.gather(1, target_n[:, None])[:, 0], top.indices, top.values))
    return ScoredText(*(torch.cat(tensors).cpu() for tensors in zip(*parts, strict=True)))
