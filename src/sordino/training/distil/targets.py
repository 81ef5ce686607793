"""What a student is to predict: the teacher's distribution of each next word, from one pass over what it wrote.

The likeliest words weigh what the teacher gives them, and hold nearly all of its distribution. A word that was drawn from outside
of them weighs 1. Together they give an unbiased estimate of the cross entropy to the whole distribution.

Shape key: B rows, T positions, N tokens that were written, n of them at a time, k targets of a token, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sordino.forward.encoder_decoder import AnyPrefixes
from sordino.forward.nll import head_of, states_before
from sordino.forward.packing import labelled_rows, with_leading_ids
from sordino.forward.placement import encode_prompts, leading_ids
from sordino.models.base_model import BaseModel
from sordino.models.memory import memory_errors
from sordino.texts.example_store import Example, SoftTargets
from sordino.training.distil.openings import Openings
from sordino.training.distil.teacher import Continuation, TextPrompt

# How many of the likeliest words are stored for each distribution.
TARGETS = 256
# Rows that run side by side, and rows of logits that are held at once.
_ROWS, _AT_ONCE = 8, 64


@torch.inference_mode()
def examples(base: BaseModel, openings: Openings, written: Sequence[Continuation]) -> list[Example]:
    """The continuations as a student reads them. Raises OutOfMemory."""
    found: list[Example] = []
    with memory_errors("reading what the teacher wrote", "shorten the text, or lower --length"):
        prefixes = encode_prompts(base, [TextPrompt.of(base, openings.prefix)])
        for at in range(0, len(written), _ROWS):
            some = written[at : at + _ROWS]
            soft = _targets(base, prefixes, [one.behind(openings.end_id) for one in some])
            found += [one.alone(openings.end_id, own) for one, own in zip(some, soft, strict=True)]
    return found


def _targets(base: BaseModel, prefixes: AnyPrefixes, rows: Sequence[Example]) -> Iterator[SoftTargets]:
    """The soft targets of each row's labelled tokens, predicted after the text."""
    leading = leading_ids(base, base.placement)
    part = labelled_rows(
        [with_leading_ids(row, leading) for row in rows], [[at] for at in range(len(rows))], [0] * len(rows)
    )
    hidden_ND = states_before(base.network, prefixes, part.rows.to(base.device), part.labelled_BT)
    words_N, head, at = part.rows.ids_BT[part.labelled_BT], head_of(base.network), 0
    pairs = zip(hidden_ND.split(_AT_ONCE), words_N.split(_AT_ONCE), strict=True)
    every = SoftTargets.joined([soft_targets(head.logits(hidden_nD), words_n) for hidden_nD, words_n in pairs])
    for row in rows:
        end = at + sum(row.labelled)
        yield SoftTargets(every.ids_Nk[at:end], every.weights_Nk[at:end])
        at = end


def soft_targets(logits_nV: Tensor, words_n: Tensor) -> SoftTargets:
    """The likeliest words with their probabilities, and last the drawn one, with 1 if it is none of them, else 0."""
    logits_nV = logits_nV.cpu().to(torch.promote_types(logits_nV.dtype, torch.float32))
    likeliest = logits_nV.softmax(1).topk(min(TARGETS, logits_nV.shape[1]), dim=1)
    outside_n1 = (likeliest.indices != words_n[:, None]).all(1, keepdim=True)
    ids_nk = torch.cat([likeliest.indices, words_n[:, None]], dim=1)
    weights_nk = torch.cat([likeliest.values.float(), outside_n1.float()], dim=1)
    return SoftTargets(ids_nk.numpy().astype(np.int64), weights_nk.numpy())
