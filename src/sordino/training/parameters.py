"""What is trained: the matrix itself, or a residual reparametrisation of it that folds back into a plain matrix.

Residual Prompt Tuning (Razdaibiedina et al. 2023, arXiv 2305.03937): matrix = E + up(relu(down(E))), one small network shared by
all virtual tokens. `up` starts at zero, so both methods start from the same prompt.

Shape key: P virtual tokens, D model width, R residual width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sordino.training.config import TrainConfig

Parameters = dict[str, Tensor]


def new_parameters(start_PD: Tensor, config: TrainConfig) -> Parameters:
    """Float32 leaves that ask for gradients, on the CPU: the master copy, whatever the model's dtype and device."""
    parameters = {"embeds_PD": start_PD.clone()}
    if config.method == "residual":
        width = start_PD.shape[1]
        random = torch.Generator().manual_seed(config.seed)
        # The input is divided by its own RMS, so that one scale is right for every model.
        parameters["down_DR"] = torch.randn(width, config.residual_width, generator=random) / width**0.5
        parameters["up_RD"] = torch.zeros(config.residual_width, width)
    return {name: tensor.requires_grad_() for name, tensor in parameters.items()}


def fold(parameters: Parameters) -> Tensor:
    """The plain matrix [P, D] that the parameters stand for."""
    embeds_PD = parameters["embeds_PD"]
    if "down_DR" not in parameters:
        return embeds_PD
    scale = embeds_PD.detach().square().mean().sqrt()
    hidden_PR = torch.relu(embeds_PD / scale @ parameters["down_DR"])
    return embeds_PD + scale * (hidden_PR @ parameters["up_RD"])
