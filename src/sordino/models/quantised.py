"""A base model whose linear layers hold packed weights (`weight_formats`) or are left on the disk, and the memory that it takes.

Embeddings and the output head stay as they are: a soft prompt lives among the embeddings, and both are read for every text. Layers
that are not linear modules, such as the experts of a mixture of experts, stay as they are too.

Shape key: N rows, D inputs, F outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from sordino.models.weight_formats import OFFLOAD, Format, PackedWeight, pack, packed_bytes, packs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StoredWeight(nn.Module):
    """A PackedWeight as it is stored, mapped from the disk: the system keeps as much of it in memory as there is room for.

    Read for each product, and copied to the device.
    """

    def __init__(self, weight_FD: Tensor, device: torch.device) -> None:
        super().__init__()
        self.shape = (len(weight_FD), weight_FD.shape[1])
        # No buffer: it does not move with its network.
        self._stored, self._device = [weight_FD], device

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        return self._stored[0].to(self._device, dtype)

    def times_few(self, x_ND: Tensor) -> Tensor | None:
        return None


class QuantisedLinear(nn.Module):
    """A frozen linear layer with packed weights. Where gradients are wanted, all passes use the dequantised weights."""

    def __init__(self, packed: nn.Module, bias_F: Tensor | None) -> None:
        super().__init__()
        self.packed = packed
        # transformers' T5 asks whether it is a tensor.
        self.weight = None
        self.bias = None if bias_F is None else nn.Parameter(bias_F, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x_ND, packed = x.reshape(-1, x.shape[-1]), cast(PackedWeight, self.packed)
        # torch ships no types for apply.
        apply: Any = _Product.apply
        run = apply if torch.is_grad_enabled() else product_of
        product: Tensor = run(x_ND, packed, self.bias)
        return product.view(*x.shape[:-1], -1)


def product_of(x_ND: Tensor, packed: PackedWeight, bias_F: Tensor | None = None) -> Tensor:
    """x @ W.T + b [N, F], without gradients."""
    few_NF = packed.times_few(x_ND)
    if few_NF is None:
        return linear(x_ND, packed.dequantised(x_ND.dtype), bias_F)
    return few_NF if bias_F is None else few_NF.add_(bias_F)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, packed: PackedWeight, bias_F: Tensor | None) -> Tensor:
        ctx.packed = packed
        return linear(x_ND, packed.dequantised(x_ND.dtype), bias_F)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] @ ctx.packed.dequantised(grads[0].dtype), None, None


def quantise(network: PreTrainedModel, kind: Format, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Pack the linear layers, one after another, and put the network on `device`, its other parameters in `dtype`."""
    for parent, name, layer in list(_linears(network, kind)):
        weight_FD = _weight_of(layer)
        packed = StoredWeight(weight_FD, device) if kind == OFFLOAD else pack(kind, weight_FD.to(device), dtype)
        bias_F = None if layer.bias is None else layer.bias.detach().to(device)
        setattr(parent, name, QuantisedLinear(packed, bias_F))
        # Freed before the next one is read.
        del layer, weight_FD
    for parameter in network.parameters():
        # Not the buffers: frequencies of positions are float32 in every number type.
        parameter.data = parameter.data.to(dtype)
    placed: Any = network.to(device)  # type: ignore[arg-type]
    return cast("PreTrainedModel", placed.eval().requires_grad_(False))


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of a network. linear: shapes [F, D] of the layers that are packed, rest: of all other parameters, tied ones once."""

    linear: tuple[tuple[int, int], ...]
    rest: int

    @staticmethod
    def of(network: PreTrainedModel, kind: Format) -> ParameterCounts:
        """Of a network, which may be on torch's meta device."""
        shapes = tuple((len(weight), weight.shape[1]) for weight in map(_weight_of, _layers(network, kind)))
        packed = sum(outputs * inputs for outputs, inputs in shapes)
        return ParameterCounts(shapes, sum(parameter.numel() for parameter in network.parameters()) - packed)

    def bytes(self, kind: Format, itemsize: int) -> int:
        return self.rest * itemsize + sum(packed_bytes(kind, *shape) for shape in self.linear)


def _linears(network: PreTrainedModel, kind: Format) -> Iterator[tuple[nn.Module, str, Any]]:
    """Parent, name and layer of each linear module that is packed."""
    head = network.get_output_embeddings()
    for parent in network.modules():
        for name, layer in parent.named_children():
            if type(layer) in (nn.Linear, Conv1D) and layer is not head and packs(kind, *_weight_of(layer).shape):
                yield parent, name, layer


def _layers(network: PreTrainedModel, kind: Format) -> Iterator[Any]:
    return (layer for _, _, layer in _linears(network, kind))


def _weight_of(layer: Any) -> Tensor:
    """[F, D]: GPT-2 holds it the other way round."""
    weight: Tensor = layer.weight.detach()
    return weight.t() if type(layer) is Conv1D else weight
