"""h(x) of many texts: what a gate reads, as `prompt_mixture.Gate` defines it.

Shape key: N texts, B rows, T positions, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sordino.base_model import BaseModel
from sordino.bootstrap import Floats
from sordino.memory import memory_named
from sordino.packing import one_by_one, pack, passes
from sordino.placement import prompt_embeds
from sordino.prefix import encode_prefixes, forward_rows, packable
from sordino.prompt_mixture import GATE_TOKENS
from sordino.rows import rows_from_examples


@torch.inference_mode()
def hidden_of_texts(base: BaseModel, texts: Sequence[Sequence[int]], *, pass_tokens: int = 4096) -> Floats:
    """h(x) [N, D] of texts as token ids, without BOS; zeros where a text is empty. Raises OutOfMemory."""
    hidden_ND = np.zeros((len(texts), base.d_model))
    # The end of a text may not see more than the gate will where it writes.
    read = {at: list(ids[-GATE_TOKENS:]) for at, ids in enumerate(texts) if ids}
    if not read:
        return hidden_ND
    order = list(read)
    lengths = [len(read[at]) for at in order]
    with memory_named("reading the texts", "lower --pass-tokens"):
        prefixes = encode_prefixes(base.network, [prompt_embeds(base, None)])
        groups = pack(lengths, max(lengths)) if packable(base.network) else one_by_one(lengths)
        for part in passes(groups, lengths, pass_tokens):
            rows = rows_from_examples([[read[order[i]] for i in group] for group in part], [0] * len(part))
            hidden_BTD = forward_rows(base.network, prefixes, rows.to(base.device)).float().cpu().double()
            for b, group in enumerate(part):
                for e, i in enumerate(group):
                    hidden_ND[order[i]] = hidden_BTD[b, rows.example_BT[b] == e].mean(dim=0).numpy()
    return hidden_ND
