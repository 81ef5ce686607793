"""The word that a model finds likeliest in place of each labelled token.

Shape key: K prefixes, B rows, T text positions, N labelled tokens, n of them at a time, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sordino.forward.encoder_decoder import AnyPrefixes
from sordino.forward.nll import head_of, states_before
from sordino.forward.packing import LabelledRows
from sordino.models.base_model import BaseModel

# Rows whose logits are held at once.
_AT_ONCE = 64


@torch.inference_mode()
def likeliest(base: BaseModel, prefixes: AnyPrefixes, part: LabelledRows) -> Tensor:
    """Token ids [N], in row order."""
    hidden_ND = states_before(base.network, prefixes, part.rows.to(base.device), part.labelled_BT)
    head = head_of(base.network)
    return torch.cat([head.logits(hidden_nD).argmax(1) for hidden_nD in hidden_ND.split(_AT_ONCE)]).cpu()
