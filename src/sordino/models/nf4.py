"""Weights in NF4: one of 16 quantiles of a normal distribution, a scale for 64 neighbours. By bitsandbytes.

Dettmers et al. 2023, arXiv 2305.14314, section 3.

Shape key: N rows, D inputs, F outputs, G groups of D.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

NF4_BLOCK = 64
# Rows up to which a product with packed weights is faster than dequantising them (LOG.md).
_FEW_NF4 = 256


class Nf4Weight(nn.Module):
    """As bitsandbytes packs it."""

    def __init__(self, weight_FD: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        nibbles, state = bitsandbytes().quantize_4bit(
            weight_FD.to(dtype).contiguous(), blocksize=NF4_BLOCK, quant_type="nf4"
        )
        self.shape = (len(weight_FD), weight_FD.shape[1])
        self.nibbles: Tensor
        self.scale_bits: Tensor
        self.code_bits: Tensor
        self.register_buffer("nibbles", nibbles, persistent=False)
        # As integers, so that a change of the network's number type does not round them.
        self.register_buffer("scale_bits", state.absmax.view(torch.int32), persistent=False)
        self.register_buffer("code_bits", state.code.view(torch.int32), persistent=False)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        weight_FD: Tensor = bitsandbytes().dequantize_4bit(self.nibbles, self._state(dtype))
        return weight_FD

    def times_few(self, x_ND: Tensor) -> Tensor | None:
        # For one row, and on a CPU for weights that are packed in another way.
        if len(x_ND) > 1 or x_ND.device.type != "cuda":
            return None
        product: Tensor = bitsandbytes().gemv_4bit(x_ND[None], self.nibbles.t(), state=self._state(x_ND.dtype))
        return product[0]

    def _state(self, dtype: torch.dtype) -> Any:
        return bitsandbytes().QuantState(
            absmax=self.scale_bits.view(torch.float32),
            shape=torch.Size(self.shape),
            code=self.code_bits.view(torch.float32),
            blocksize=NF4_BLOCK,
            quant_type="nf4",
            dtype=dtype,
        )


class Nf4BlockedWeight(nn.Module):
    """In the layout of bitsandbytes' kernel for CPUs with AVX512-BF16: blocks of 32 rows, pairs of neighbours of a row together; a
    byte holds the numbers of rows r and r + 16. Scales are bfloat16."""

    def __init__(self, weight_FD: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = (len(weight_FD), weight_FD.shape[1])
        code: Tensor = bitsandbytes().get_4bit_type("nf4", device="cpu")
        # bitsandbytes' own quantisation takes several times as long on a CPU.
        grouped_FGg = weight_FD.float().unflatten(1, (-1, NF4_BLOCK))
        scale_FG = positive_scale(grouped_FGg.abs().amax(-1), torch.bfloat16)
        grouped_FGg = grouped_FGg / scale_FG.float()[..., None]
        numbers_FGg = torch.zeros(grouped_FGg.shape, dtype=torch.uint8)
        for middle in ((code[1:] + code[:-1]) / 2).tolist():
            numbers_FGg += grouped_FGg > middle
        # Blocks, halves, 16 rows, pairs, 2: the pairs before the rows.
        halves = numbers_FGg.view(-1, 2, 16, self.shape[1] // 2, 2).transpose(2, 3)
        scale_GF = scale_FG.t().contiguous()
        # The two numbers of each byte.
        table_2 = torch.stack([code.repeat(16), code.repeat_interleave(16)], dim=1)
        self.nibbles: Tensor
        self.scale_GF: Tensor
        self.table_2: Tensor
        self.register_buffer("nibbles", (halves[:, 0] | halves[:, 1] << 4).contiguous().flatten(), persistent=False)
        self.register_buffer("scale_GF", scale_GF, persistent=False)
        self.register_buffer("table_2", table_2, persistent=False)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        outputs, inputs = self.shape
        numbers_2 = embedding(self.nibbles.int(), self.table_2.to(dtype))
        # Blocks, pairs, 16 rows, 2 of a pair, 2 halves.
        numbers_FD = numbers_2.view(-1, inputs // 2, 16, 2, 2).permute(0, 4, 2, 1, 3).reshape(outputs, -1, NF4_BLOCK)
        return numbers_FD.mul_(self.scale_GF.to(dtype).t().unsqueeze(-1)).flatten(1)

    def times_few(self, x_ND: Tensor) -> Tensor | None:
        if len(x_ND) > _FEW_NF4 or x_ND.dtype != torch.bfloat16 or not _nf4_kernel_agrees():
            return None
        return self.product(x_ND)

    def product(self, x_ND: Tensor) -> Tensor:
        """x @ W.T [N, F] by the kernel, for bfloat16."""
        outputs, inputs = self.shape
        product: Tensor = torch.ops.bitsandbytes.gemv_4bit(
            x_ND, self.nibbles.view(outputs, inputs // 2), self.shape, self.scale_GF, self.table_2[:16, 0], NF4_BLOCK
        )
        return product


def nf4_for(device: torch.device, outputs: int, inputs: int) -> type[nn.Module]:
    """The way to pack that a device has a kernel for."""
    blocked = device.type == "cpu" and outputs % 32 == 0 and inputs % NF4_BLOCK == 0
    return Nf4BlockedWeight if blocked and bitsandbytes().has_avx512bf16() else Nf4Weight


@cache
def bitsandbytes() -> Any:
    """bitsandbytes.functional. Where the package `kernels` is installed, it would fetch programs from the Hub: it does not here."""
    with _without("kernels"):
        log = logging.getLogger("bitsandbytes.backends.cpu.ops")
        level = log.level
        # It advises to install that package.
        log.setLevel(logging.ERROR)
        try:
            return importlib.import_module("bitsandbytes.functional")
        finally:
            log.setLevel(level)


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Inside, the package cannot be imported."""
    loaded = sys.modules.get(package)
    # None makes an import fail.
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        if loaded is not None:
            sys.modules[package] = loaded


@cache
def _nf4_kernel_agrees() -> bool:
    """Whether bitsandbytes' kernel reads what `Nf4BlockedWeight` packs, which is no promise of its public interface."""
    weight = Nf4BlockedWeight(torch.linspace(-1, 1, 64 * 64).sin().view(64, 64), torch.bfloat16)
    x_ND = torch.linspace(-1, 1, 2 * 64).cos().view(2, 64).bfloat16()
    exact_NF = x_ND.float() @ weight.dequantised(torch.float32).t()
    return bool((weight.product(x_ND).float() - exact_NF).norm() < 0.02 * exact_NF.norm())


def positive_scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to the number type; where all weights are alike, anything but 0."""
    rounded = scale.to(dtype)
    return torch.where(rounded > 0, rounded, torch.ones_like(rounded))
