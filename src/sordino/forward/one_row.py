"""A prompt in every row, ahead of its text: on a GPU this is faster than a prefix of its own, where few positions are repeated.

Shape key: K prompts, B rows, T text positions, P prompt positions, S all of them, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from sordino.forward.masks import layer_masks
from sordino.forward.prefix import packable, positions_of, run_network, side_by_side
from sordino.forward.rows import Rows
from sordino.forward.weighting import Spans

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What a data centre's GPU computes in the time it takes to launch one layer of modules, forward and back.
_LAUNCHES_FLOP = 2e11
# Padding up to this many positions is cheap; beyond, up to half of the texts' positions.
_MORE_POSITIONS = 2048
# Marks a prompt's positions among the examples' numbers; -1 is padding.
_PROMPT = -2


def one_row_pays(network: PreTrainedModel, embeds: Sequence[Tensor], rows: Rows, spans: Spans) -> bool:
    """Whether to run a prompt in every row (`forward_as_one_row`) rather than once by itself.

    A GPU waits for launches: those of one layer, forward and back, take as long as some hundred GFLOP (LOG.md). A CPU does not.
    """
    if network.device.type != "cuda" or not packable(network) or rows.ids_BT.shape[1] == 0 or any(spans):
        return False
    config: Any = network.config.get_text_config()
    embedding: Any = network.get_input_embeddings()
    layer_parameters = (network.num_parameters() - embedding.weight.numel()) / config.num_hidden_layers
    width = max(int(e.shape[0]) for e in embeds)
    more = (len(rows.prompt_B) - len(embeds)) * width
    fits = more <= max(_MORE_POSITIONS, rows.ids_BT.numel() // 2)
    return width > 0 and fits and 4 * layer_parameters * more <= _LAUNCHES_FLOP


def forward_as_one_row(network: PreTrainedModel, embeds: Sequence[Tensor], rows: Rows) -> tuple[Tensor, Tensor]:
    """As `encode_and_forward`, in one run through the model: every row has its own copy of its prompt ahead of its text.

    Hidden states (after the final norm): [B, D] at the last position of each row's prompt, zeros without one; and [B, T, D].
    """
    lengths, device = tuple(int(e.shape[0]) for e in embeds), rows.ids_BT.device
    embeds_KPD, positions_KP, padded_KP = side_by_side(network, embeds)
    text_BTD = network.get_input_embeddings()(rows.ids_BT)
    width, both = embeds_KPD.shape[1], embeds_KPD.shape[1] + text_BTD.shape[1]
    inputs_BSD = torch.cat([embeds_KPD[rows.prompt_B], text_BTD], dim=1)
    positions_BS = torch.cat([positions_KP[rows.prompt_B], positions_of(lengths, rows)], dim=1)
    # Every later position sees a prompt; only its own example sees a text.
    example_BS = torch.nn.functional.pad(rows.example_BT, (width, 0), value=_PROMPT)
    prompt_BSP = ~padded_KP[rows.prompt_B][:, None, :].expand(-1, both, -1)
    text_BST = example_BS[:, :, None] == rows.example_BT[:, None, :]
    causal_SS = torch.ones(both, both, dtype=torch.bool, device=device).tril()
    allowed_BSS = torch.cat([prompt_BSP, text_BST], dim=2) & causal_SS
    masks = layer_masks(network, allowed_BSS, positions_BS[:, :, None] - positions_BS[:, None, :])
    hidden_BSD = run_network(network, inputs_BSD, positions_BS, masks, DynamicCache())
    filled_B = torch.tensor([length > 0 for length in lengths], device=device)[rows.prompt_B]
    return hidden_BSD[:, width - 1] * filled_B[:, None], hidden_BSD[:, width:]
