"""What each position attends to: additive masks for families whose packed rows are proven in tests/parity.

Masks are ours, and floats of the model's dtype: boolean 4-D masks are wrong in eager attention and on GPT-J. Models with sliding
layers take one mask per kind of layer; windows are measured in position ids, not in indices.

Shape key: K prefixes, B rows, T text positions, P prefix positions, Q query positions, S key positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sordino.forward.rows import Rows
from sordino.forward.weighting import PromptSpan, Spans, position_bias, row_bias

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class AttentionMasks:
    """Additive masks for fused layers. prefix [B or 1, 1, T, P]: over what stands ahead of a text (None: all of it is seen, or
    there is nothing). own [B or 1, 1, T, T]: over the text itself (None: everything up to the position)."""

    prefix: Tensor | None = None
    own: Tensor | None = None


def prompt_masks(
    network: PreTrainedModel, positions_KP: Tensor, padded_KP: Tensor, bias_KPP: Tensor | None = None
) -> Any:
    """For prompts padded on the left: every position sees its prompt up to itself. bias_KPP: added to the scores."""
    width = positions_KP.shape[1]
    causal_PP = torch.ones(width, width, dtype=torch.bool, device=positions_KP.device).tril()
    allowed_KPP = causal_PP & ~padded_KP[:, None, :]
    return layer_masks(network, allowed_KPP, positions_KP[:, :, None] - positions_KP[:, None, :], bias_KPP)


def row_masks(network: PreTrainedModel, lengths: Sequence[int], spans: Spans, rows: Rows, positions_BT: Tensor) -> Any:
    """For rows of text: every position sees its row's prefix, and its own example up to itself.

    lengths, spans: of the K prefixes.
    """
    device, width = positions_BT.device, max(lengths)
    pad_B = (width - torch.tensor(lengths, device=device))[rows.prompt_B]
    index_P = torch.arange(width, device=device)
    if len(lengths) == 1 and bool((rows.example_BT == 0).all()):
        # Rectangular rows with one prefix all have the same mask: one is built and broadcast.
        rows = Rows(rows.ids_BT[:1], rows.example_BT[:1], rows.offset_BT[:1], rows.prompt_B[:1])
        positions_BT, pad_B = positions_BT[:1], pad_B[:1]
    text = rows.ids_BT.shape[1]
    causal_TT = torch.ones(text, text, dtype=torch.bool, device=device).tril()
    own_BTT = (rows.example_BT[:, :, None] == rows.example_BT[:, None, :]) & causal_TT
    prefix_BTP = (index_P[None, :] >= pad_B[:, None])[:, None, :].expand(-1, text, -1)
    keys_B = torch.cat([index_P[None, :] - pad_B[:, None], positions_BT], dim=1)
    distance_BTS = positions_BT[:, :, None] - keys_B[:, None, :]
    bias_BTP = row_bias(lengths, spans, rows.prompt_B, rows.offset_BT, network.dtype)
    bias_BTS = None if bias_BTP is None else torch.nn.functional.pad(bias_BTP, (0, text))
    return layer_masks(network, torch.cat([prefix_BTP, own_BTT], dim=2), distance_BTS, bias_BTS)


def fused_masks(lengths: Sequence[int], spans: Spans, rows: Rows, dtype: torch.dtype) -> AttentionMasks:
    """As `row_masks`, without a mask where every position sees the whole prefix, or one example fills its row."""
    width, text, device = max(lengths), rows.ids_BT.shape[1], rows.ids_BT.device
    own = None
    alike = slice(1) if len(lengths) == 1 and int(rows.example_BT.max()) == 0 else slice(None)
    bias_BTP = row_bias(lengths, spans, rows.prompt_B[alike], rows.offset_BT[alike], dtype)
    prefix = None if bias_BTP is None else bias_BTP[:, None]
    if min(lengths) < width:
        pad_B = (width - torch.tensor(lengths, device=device))[rows.prompt_B]
        seen_BP = torch.arange(width, device=device)[None, :] >= pad_B[:, None]
        hidden = additive(seen_BP[:, None, :].expand(-1, text, -1), dtype)
        prefix = hidden if prefix is None else prefix + hidden
    if int(rows.example_BT.max()) > 0:
        own_BTT = rows.example_BT[:, :, None] == rows.example_BT[:, None, :]
        own = additive(own_BTT.tril(), dtype)
    return AttentionMasks(prefix, own)


def held_masks(network: PreTrainedModel, span: PromptSpan, width: int) -> Any:
    """For rows of `width` positions, the prompt's first: every position sees all up to itself."""
    position_S = torch.arange(width, device=network.device)
    distance_1SS = (position_S[:, None] - position_S[None, :])[None]
    bias_SS = position_bias([span] * width, position_S, width, network.dtype)
    return layer_masks(network, distance_1SS >= 0, distance_1SS, bias_SS)


def layer_masks(network: PreTrainedModel, allowed: Tensor, distance: Tensor, bias: Tensor | None = None) -> Any:
    """Masks [B, 1, Q, S] from which keys are allowed and how far away they are: one, or one per kind of layer.

    bias: added to the scores of keys that are allowed; broadcast.
    """
    config: Any = network.config
    kinds = set(getattr(config, "layer_types", None) or ())
    full = additive(allowed, network.dtype, bias)
    if "sliding_attention" not in kinds:
        return full
    near = distance < int(config.sliding_window)
    return {"full_attention": full, "sliding_attention": additive(allowed & near, network.dtype, bias)}


def additive(allowed_BQS: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    # The most negative finite number, not -inf: a padded query that sees nothing must not become NaN.
    mask = torch.zeros(allowed_BQS.shape, dtype=dtype, device=allowed_BQS.device)
    if bias is not None:
        mask += bias
    return mask.masked_fill_(~allowed_BQS, torch.finfo(dtype).min)[:, None]
