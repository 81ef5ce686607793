"""A base model that is spread over processes: each holds a part of every decoder layer, and a layer is whole while it runs.

FSDP2 (torch.distributed.fsdp.fully_shard) gathers a layer before it runs forward, and again before gradients enter its output. Here
they enter also through the keys and values that a prompt leaves behind, so each module of a layer asks for its weights itself.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from sordino.errors import ConfigError
from sordino.models.base_model import BaseModel


def sharded(base: BaseModel, processes: int) -> BaseModel:
    """The base model with its layers spread over the processes, on their GPUs if they have any; embeddings and head are whole.

    One that is sharded stays as it is. Raises ConfigError for packed weights: gathered, they are other numbers, without a sign
    (bitsandbytes #1945).
    """
    if base.quantise is not None:
        raise ConfigError("packed weights cannot be sharded", where="--shard", got=f"--quantise {base.quantise}")
    base.check_decoder("sharding")
    layers = _layers_of(base)
    if isinstance(layers[0], FSDPModule):
        return base
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mesh = init_device_mesh(device.type, (processes,))
    for layer in layers:
        # It moves one layer at a time: the whole model need not fit on a GPU.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        for module in layer.modules():
            if any(True for _ in module.parameters(recurse=False)):
                module.register_forward_hook(partial(_gather_for_gradients, layer))
    network: Any = base.network
    network.to(device)
    return replace(base, device=device)


def _layers_of(base: BaseModel) -> nn.ModuleList:
    for module in base.network.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == base.n_layers:
            return module
    raise ConfigError("the layers of this architecture are not known", where="--shard", got=base.family)


def _gather_for_gradients(layer: Any, module: nn.Module, inputs: object, output: object) -> None:
    if isinstance(output, Tensor) and output.requires_grad:
        output.register_hook(lambda gradient: layer.unshard())
