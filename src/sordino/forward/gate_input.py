"""The input of a mixture's gate: h(x) of a text x, from one pass through the base model without a soft prompt.

Shape key: N texts, T positions, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sordino.forward.placement import prompt_embeds
from sordino.forward.prefix import encode_prefixes, forward_rows, packable
from sordino.forward.rows import rows_from_examples
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import GATE_TOKENS

# Most positions in one pass through the model, padding counted.
_PASS_TOKENS = 2048


def hidden_of_text(base: BaseModel, ids: Sequence[int]) -> Tensor:
    """h(x) [D] of one text: see `hidden_of_texts`."""
    return hidden_of_texts(base, [ids])[0]


@torch.inference_mode()
def hidden_of_texts(base: BaseModel, texts: Sequence[Sequence[int]], *, pass_tokens: int = _PASS_TOKENS) -> Tensor:
    """h(x) [N, D], float32 at least, on the CPU: see `prompts.mixture.Gate`. texts: ids as `encode` gives them, without BOS.

    Only the last GATE_TOKENS of a text are read, after a BOS where the tokenizer writes one.
    """
    base.check_decoder("a mixture's gate")
    exact = torch.promote_types(base.dtype, torch.float32)
    hidden_ND = torch.zeros(len(texts), base.d_model, dtype=exact)
    read = {index: list(ids[-GATE_TOKENS:]) for index, ids in enumerate(texts) if len(ids)}
    if not read:
        return hidden_ND
    prefixes = encode_prefixes(base.network, [prompt_embeds(base, None)])
    for group in _groups(read, pass_tokens if packable(base.network) else 0):
        rows = rows_from_examples([[read[index]] for index in group], [0] * len(group)).to(base.device)
        hidden_BTD = forward_rows(base.network, prefixes, rows).to(exact)
        for b, index in enumerate(group):
            hidden_ND[index] = hidden_BTD[b, : len(read[index])].mean(dim=0).cpu()
    return hidden_ND


def _groups(read: dict[int, list[int]], pass_tokens: int) -> list[list[int]]:
    """Groups of texts of similar length, each as large as fits, at least one text."""
    groups: list[list[int]] = []
    for index in sorted(read, key=lambda index: len(read[index])):
        # In order of length, this one is the longest of its group.
        if groups and (len(groups[-1]) + 1) * len(read[index]) <= pass_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
