"""Prefixes made longer by the text after them, for texts that several continuations share.

Shape key: B rows, T text positions, S cached positions, P prefix positions, D model width, H key-value heads, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sordino.forward import llama
from sordino.forward.prefix import Prefixes, forward_rows_cached, has_fused_layers, in_each_row, layers_of, text_block
from sordino.forward.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def extend_prefixes(network: PreTrainedModel, prefixes: Prefixes, rows: Rows) -> Prefixes:
    """Each row's prefix and text as a new prefix, for texts that several continuations share. One example a row."""
    if has_fused_layers(network) and rows.ids_BT.shape[1] > 0:
        keys, values = (
            [in_each_row(plane, rows.prompt_B) for plane in side] for side in (prefixes.keys_KHPC, prefixes.values_KHPC)
        )
        prefix = list(zip(keys, values, strict=True))
        hidden_BTD, own = llama.decode(network, text_block(network, prefixes.lengths, prefixes.spans, rows), prefix)
        layers = [
            (torch.cat([prefix[at][0], own_keys], dim=2), torch.cat([prefix[at][1], own_values], dim=2))
            if prefix
            else (own_keys, own_values)
            for at, (own_keys, own_values) in enumerate(own)
        ]
    else:
        hidden_BTD, cache = forward_rows_cached(network, prefixes, rows)
        layers = layers_of(cache)
    return _left_aligned(layers, hidden_BTD, prefixes, rows)


def _left_aligned(
    layers: Sequence[tuple[Tensor, Tensor]], hidden_BTD: Tensor, prefixes: Prefixes, rows: Rows
) -> Prefixes:
    """Prefixes from a cache, which holds a prefix padded on the left, then text padded on the right."""
    device = rows.ids_BT.device
    prefix_B = torch.tensor(prefixes.lengths, device=device)[rows.prompt_B]
    text_B = (rows.example_BT >= 0).sum(dim=1)
    total_B = prefix_B + text_B
    place_BS = torch.arange(int(total_B.max()), device=device) - (total_B.max() - total_B)[:, None]
    # The left padding of a prefix is skipped.
    source_BS = (place_BS + (prefixes.width - prefix_B)[:, None]).clamp(min=0)

    def aligned(tensor_BHSC: Tensor) -> Tensor:
        index_BHSC = source_BS[:, None, :, None].expand(-1, tensor_BHSC.shape[1], -1, tensor_BHSC.shape[3])
        return tensor_BHSC.gather(2, index_BHSC)

    last_BD = prefixes.last_KD[rows.prompt_B].clone()
    has_text_B = text_B > 0
    last_BD[has_text_B] = hidden_BTD[has_text_B, text_B[has_text_B] - 1]
    keys, values = zip(*((aligned(k), aligned(v)) for k, v in layers), strict=True) if layers else ((), ())
    spans = tuple(prefixes.spans[k] for k in rows.prompt_B.tolist()) if prefixes.spans else ()
    return Prefixes(keys, values, last_BD, tuple(total_B.tolist()), spans)
