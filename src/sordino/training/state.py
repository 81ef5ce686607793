"""Everything that changes during a run, and how a step changes it.

What is trained is the matrix itself, or a residual reparametrisation of it that folds back into a plain matrix. Residual Prompt
Tuning (Razdaibiedina et al. 2023, arXiv 2305.03937): matrix = E + up(relu(down(E))), one small network shared by all virtual
tokens. `up` starts at zero, so both methods start from the same prompt.

Shape key: P virtual tokens, D model width, R residual width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sordino.training.adafactor import Adafactor
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


@dataclass
class Progress:
    """The counters of a run. step: steps done. best_loss: lowest validation loss, of `best_PD`. bad: evaluations since.
    metrics_bytes: how much of metrics.jsonl belongs to this state. seconds: time spent training, also before it was resumed.
    """

    step: int = 0
    best_loss: float = float("inf")
    best_step: int = 0
    bad: int = 0
    tokens: int = 0
    seconds: float = 0.0
    metrics_bytes: int = 0
    finished: str = ""


@dataclass
class RunState:
    """Parameters and optimiser, the weight average, the average that validated best, and the counters."""

    parameters: Parameters
    optimiser: torch.optim.Optimizer
    average_PD: Tensor
    best_PD: Tensor
    progress: Progress


def new_state(start_PD: Tensor, config: TrainConfig, unit: float) -> RunState:
    """unit: what the learning rate of the matrix is a multiple of with Adam; Adafactor's is none."""
    parameters = new_parameters(start_PD, config)
    groups = [
        # The shared network of the residual method has weights of order 1/sqrt(D); its unit is its own.
        {"params": [tensor], "unit": 1.0 if config.optimiser == "adafactor" else unit if name == "embeds_PD" else 0.02}
        for name, tensor in parameters.items()
    ]
    optimiser: torch.optim.Optimizer = (
        Adafactor(groups, lr=config.lr, weight_decay=config.weight_decay)
        if config.optimiser == "adafactor"
        else torch.optim.Adam(groups, lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay, foreach=False)
    )
    return RunState(parameters, optimiser, start_PD.clone(), start_PD.clone(), Progress())


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """rate: in the units that `new_state` was given."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["unit"]


def update_average(state: RunState, config: TrainConfig) -> None:
    """Exponential average of the folded matrix; a plain mean while the run is younger than its memory."""
    with torch.no_grad():
        state.average_PD.lerp_(fold(state.parameters).detach(), 1 / averaged_steps(state.progress.step, config))


def averaged_steps(step: int, config: TrainConfig) -> float:
    """The memory of the weight average after `step` steps."""
    return max(1.0, min(config.average * config.steps, float(step)))
