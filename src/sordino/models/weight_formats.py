"""Weights of linear layers in 8 and 4 bits: packed once, and either multiplied as they are or dequantised for a product.

    int8   a number in 8 bits, a scale for each output; 8 bits a weight. torch alone.
    int4   a number in 4 bits, scale and middle for 32 neighbours; 5 bits a weight. torch alone.
    nf4    one of 16 quantiles of a normal distribution, a scale for 64 neighbours; 4.5 bits a weight. By bitsandbytes.
           (Dettmers et al. 2023, arXiv 2305.14314, section 3)

Each format is a module, so that it moves between devices with its network. Scales are rounded to two bytes before the weights are,
so that every product uses the same weights, those of `dequantised`. The kernels are written for bfloat16: a few rows of float32 are
rounded to it, which changes them less than packing changes the weights.

Shape key: N rows, D inputs, F outputs, G groups of D, R rows of a block.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from sordino.errors import MissingExtra
from sordino.models.nf4 import NF4_BLOCK, nf4_for, positive_scale

# offload: as it is stored, on the disk (`quantised.StoredWeight`).
Format = Literal["int8", "nf4", "int4", "offload"]
OFFLOAD: Format = "offload"
FORMATS: tuple[Format, ...] = tuple(kind for kind in get_args(Format) if kind != OFFLOAD)

_GROUP = 32
# Rows up to which a product with packed weights is faster than dequantising them (LOG.md).
_FEW_INT8, _FEW_INT4 = 64, 128


class PackedWeight(Protocol):
    """A weight [F, D]."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight [F, D]."""

    def times_few(self, x_ND: Tensor) -> Tensor | None:
        """x @ W.T [N, F] without gradients; None where dequantising is better, or this machine has no kernel for it."""


def check_installed(kind: Format) -> None:
    """Raises MissingExtra where a format's package is not installed."""
    if kind == "nf4" and find_spec("bitsandbytes") is None:
        raise MissingExtra(
            "the package of this format is not installed",
            where="--quantise nf4",
            got="no bitsandbytes",
            do="pip install 'sordino[quantise]', or take --quantise int8 or int4, which need nothing more",
        )


def packs(kind: Format, outputs: int, inputs: int) -> bool:
    """Whether a format takes weights of this shape; others stay as they are."""
    if kind == "int4":
        return inputs % _GROUP == 0 and outputs % 32 == 0
    return kind in ("int8", "offload") or inputs * outputs % 2 == 0


def packed_bytes(kind: Format, outputs: int, inputs: int) -> int:
    """Bytes of memory for a packed weight."""
    count = outputs * inputs
    if kind == "offload":
        return 0
    if kind == "int8":
        return count + outputs * 2
    if kind == "int4":
        return count // 2 + count // _GROUP * 4
    return count // 2 + -(-count // NF4_BLOCK) * 4


def pack(kind: Format, weight_FD: Tensor, dtype: torch.dtype) -> nn.Module:
    """A PackedWeight on the weight's device. dtype: the model's number type."""
    formats: dict[Format, Any] = {"int8": Int8Weight, "int4": Int4Weight}
    made: Any = formats[kind] if kind in formats else nf4_for(weight_FD.device, *weight_FD.shape)
    packed: nn.Module = made(weight_FD, dtype)
    return packed


def _scale_type(dtype: torch.dtype) -> torch.dtype:
    """The number type of scales, which has two bytes. dtype: the model's."""
    return torch.bfloat16 if dtype == torch.float32 else dtype


def _for_kernel(x_ND: Tensor, most: int) -> Tensor | None:
    """x in bfloat16, as the kernels take it; None for more than `most` rows, and for what no kernel takes."""
    if len(x_ND) > most or x_ND.device.type != "cpu" or x_ND.dtype not in (torch.bfloat16, torch.float32):
        return None
    return x_ND.bfloat16()


class Int8Weight(nn.Module):
    def __init__(self, weight_FD: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        scale_F = positive_scale(weight_FD.abs().amax(1).float() / 127, _scale_type(dtype))
        numbers_FD = (weight_FD / scale_F.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8).contiguous()
        self.shape = (len(weight_FD), weight_FD.shape[1])
        self.numbers_FD: Tensor
        self.scale_F: Tensor
        self.register_buffer("numbers_FD", numbers_FD, persistent=False)
        self.register_buffer("scale_F", scale_F, persistent=False)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        return self.numbers_FD.to(dtype).mul_(self.scale_F.to(dtype)[:, None])

    def times_few(self, x_ND: Tensor) -> Tensor | None:
        if (rounded_ND := _for_kernel(x_ND, _FEW_INT8)) is None:
            return None
        product: Tensor = torch.ops.aten._weight_int8pack_mm(rounded_ND, self.numbers_FD, self.scale_F)
        return product.to(x_ND.dtype)


class Int4Weight(nn.Module):
    """In the layout of torch's kernel for CPUs: blocks of R rows, two rows of a block in a byte."""

    def __init__(self, weight_FD: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        grouped_FGg = weight_FD.float().unflatten(1, (-1, _GROUP))
        low_FG, high_FG = grouped_FGg.amin(-1), grouped_FGg.amax(-1)
        scale_FG = positive_scale((high_FG - low_FG) / 15, _scale_type(dtype))
        # The kernel computes (number - 8) * scale + middle.
        middle_FG = (low_FG + 8 * scale_FG.float()).to(scale_FG.dtype)
        centred_FGg = grouped_FGg - middle_FG.float()[..., None]
        numbers_FGg = (centred_FGg / scale_FG.float()[..., None]).round_().add_(8).clamp_(0, 15)
        # Blocks of 64 rows with AVX-512, of 32 with AVX2.
        self._block = 64 if len(weight_FD) % 64 == 0 and _kernel_packs_alike(64) else 32
        self.shape = (len(weight_FD), weight_FD.shape[1])
        self.nibbles: Tensor
        self.scale_GF2: Tensor
        self.register_buffer(
            "nibbles", nibbles_of(numbers_FGg.to(torch.uint8).flatten(1), self._block), persistent=False
        )
        scales_GF2 = torch.stack([scale_FG, middle_FG], dim=-1).transpose(0, 1).contiguous()
        self.register_buffer("scale_GF2", scales_GF2, persistent=False)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        numbers_FD = numbers_of(self.nibbles, self._block, self.shape)
        scale_FG1, middle_FG1 = self.scale_GF2.to(dtype).permute(2, 1, 0).unsqueeze(-1)
        grouped_FGg = numbers_FD.to(dtype).sub_(8).unflatten(1, (-1, _GROUP))
        weight_FD: Tensor = grouped_FGg.mul_(scale_FG1).add_(middle_FG1).flatten(1)
        return weight_FD

    def times_few(self, x_ND: Tensor) -> Tensor | None:
        rounded_ND = _for_kernel(x_ND, _FEW_INT4)
        if rounded_ND is None or not _kernel_packs_alike(self._block):
            return None
        outputs, inputs = self.shape
        nibbles = self.nibbles.view(outputs, inputs // 2)
        product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rounded_ND, nibbles, _GROUP, self.scale_GF2)
        return product.to(x_ND.dtype)


def nibbles_of(numbers_FD: Tensor, block: int) -> Tensor:
    """Numbers below 16, uint8 [F, D], two in a byte: of rows r and r + R / 2 of each block of R rows."""
    inputs = numbers_FD.shape[1]
    halves = numbers_FD.view(-1, 2, block // 2, inputs).transpose(2, 3)
    return (halves[:, 0] | halves[:, 1] << 4).contiguous().flatten()


def numbers_of(nibbles: Tensor, block: int, shape: tuple[int, ...]) -> Tensor:
    """What `nibbles_of` packed."""
    bytes_BDr = nibbles.view(-1, shape[1], block // 2)
    halves = torch.stack([bytes_BDr & 15, bytes_BDr >> 4], dim=1)
    return halves.transpose(2, 3).reshape(shape)


@cache
def _kernel_packs_alike(block: int) -> bool:
    """Whether torch's kernel packs as `nibbles_of` on this processor: it has several ways."""
    convert = getattr(torch.ops.aten, "_convert_weight_to_int4pack_for_cpu", None)
    if convert is None:
        return False
    numbers_FD = torch.randint(0, 16, (2 * block, 64), generator=torch.Generator().manual_seed(0))
    return torch.equal(convert(numbers_FD.int(), 1).flatten(), nibbles_of(numbers_FD.to(torch.uint8), block))
