"""The word that a model finds likeliest in place of each labelled token.

Shape key: K prefixes, B rows, T text positions, N labelled tokens, n of them at a time, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sordino.forward.nll import head_of, predicting
from sordino.forward.packing import LabelledRows
from sordino.forward.prefix import Prefixes, forward_rows
from sordino.models.base_model import BaseModel

# Rows whose logits are held at once.
_AT_ONCE = 64


@torch.inference_mode()
def likeliest(base: BaseModel, prefixes: Prefixes, part: LabelledRows) -> Tensor:
    """Token ids [N], in row order."""
    rows = part.rows.to(base.device)
    hidden_BTD = forward_rows(base.network, prefixes, rows)
    hidden_ND = predicting(prefixes.last_KD, hidden_BTD, rows, part.labelled_BT)
    head = head_of(base.network)
    return torch.cat([head.logits(hidden_nD).argmax(1) for hidden_nD in hidden_ND.split(_AT_ONCE)]).cpu()
