"""Adafactor (Shazeer & Stern 2018, arXiv 1804.04235) as soft prompts of T5 were published with it (Lester et al. 2021).

No momentum, no scaling by the parameter, second moments that decay by 1 - t^-0.8, updates clipped to an RMS of 1. As in the
Adafactor of flax, a matrix is factored where both of its sides have 128 numbers or more: a prompt of 100 virtual tokens is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_DECAY, _CLIP, _TINY, _FACTORED = 0.8, 1.0, 1e-30, 128


class Adafactor(torch.optim.Optimizer):
    """groups: as torch's optimisers take them. weight_decay: the share of a parameter that is taken off at each step."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._update(parameter) * group["lr"] + parameter * group["weight_decay"]
                    parameter.sub_(update)

    def _update(self, parameter: Tensor) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        state["step"] = state.get("step", torch.zeros(())) + 1
        decay = 1.0 - float(state["step"]) ** -_DECAY
        square = gradient.square() + _TINY
        if parameter.dim() == 2 and min(parameter.shape) >= _FACTORED:
            row = state["row"] = _decayed(state.get("row"), square.mean(1), decay)
            column = state["column"] = _decayed(state.get("column"), square.mean(0), decay)
            second = row[:, None] * column[None, :] / row.mean()
        else:
            second = state["square"] = _decayed(state.get("square"), square, decay)
        update = gradient / second.sqrt()
        return update / (update.square().mean().sqrt() / _CLIP).clamp(min=1.0)


def _decayed(before: Tensor | None, now: Tensor, decay: float) -> Tensor:
    return now if before is None else decay * before + (1 - decay) * now
