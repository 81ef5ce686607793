"""Where a soft prompt sits relative to BOS, said once.

    after_bos   prefix = BOS, virtual tokens;   row = text         the model keeps its attention sink: Gemma needs it
    start       prefix = virtual tokens;        row = BOS, text    what KoboldAI and PEFT do
    no prompt   prefix = BOS (or nothing);      row = text

Where the tokenizer writes no BOS the first two are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sordino.models.base_model import BaseModel
from sordino.models.description import DescribedModel
from sordino.prompts.soft_prompt import Placement, SoftPrompt


def prefix_embeds(base: BaseModel, matrix_PD: Tensor | None, placement: Placement) -> Tensor:
    """What is run once ahead of every row: inputs_embeds [P, D] in float32, differentiable towards `matrix_PD`."""
    bos_ids = base.bos_ids if matrix_PD is None or placement == "after_bos" else ()
    ids = torch.tensor(bos_ids, dtype=torch.long, device=base.device)
    bos_PD = base.embed(ids).detach().float()
    return bos_PD if matrix_PD is None else torch.cat([bos_PD, matrix_PD.to(base.device)])


def prompt_embeds(base: BaseModel, prompt: SoftPrompt | None) -> Tensor:
    """As `prefix_embeds`, for a finished soft prompt, or for none."""
    if prompt is None:
        return prefix_embeds(base, None, base.placement)
    return prefix_embeds(base, torch.from_numpy(prompt.matrix.copy()), prompt.metadata.placement)


def leading_ids(base: DescribedModel, placement: Placement | None) -> tuple[int, ...]:
    """The ids a row's own text begins with: BOS behind a prompt that was placed before it. None means no prompt."""
    return base.bos_ids if placement == "start" else ()


def prefix_length(base: DescribedModel, prompt: SoftPrompt | None) -> int:
    """Positions in front of a row's own text: the soft prompt, and a BOS where it is not the text's."""
    placement = prompt.metadata.placement if prompt else None
    return (prompt.n_tokens if prompt else 0) + len(base.bos_ids) - len(leading_ids(base, placement))
