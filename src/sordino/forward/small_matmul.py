"""Products of a few rows with a weight: x @ W.T, or (W @ x.T).T where that is faster.

On AMD's processors it is, up to three times, as long as x is small; on Intel's, where MKL takes other ways, it is not (LOG.md). The
choice goes by the processor's maker and by sizes, not by a measurement, so that a machine gives the same numbers every time.

Shape key: N rows, D width of a row, F outputs.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from sordino.models.quantised import product_of
from sordino.models.weight_formats import PackedWeight

# With this many rows W @ x.T is as fast or faster everywhere.
_MANY_ROWS = 16
# Values of x that the first-level cache of a core holds beside a strip of the weight.
_SMALL = 6144


def times(x_ND: Tensor, weight_FD: Tensor | PackedWeight) -> Tensor:
    """x @ W.T [N, F]. It may lie in memory as [F, N]. x is contiguous."""
    if not isinstance(weight_FD, Tensor):
        return product_of(x_ND, weight_FD)
    return (weight_FD @ x_ND.t()).t() if _weight_first(x_ND) else linear(x_ND, weight_FD)


def widened(x_ND: Tensor) -> Tensor:
    """With copies of the last row, up to a number of rows whose product is faster: 2 for 1, 4 for 3, 16 for 9 to 15."""
    rows = len(x_ND)
    more = (
        0
        if on_intel() or _is_half(x_ND)
        else 1
        if rows in (1, 3)
        else _MANY_ROWS - rows
        if 8 < rows < _MANY_ROWS
        else 0
    )
    return torch.cat([x_ND, x_ND[-1:].expand(more, -1)]) if more else x_ND


@cache
def on_intel() -> bool:
    """Whether this is an Intel processor, according to Windows or Linux; False where neither says."""
    maker = os.environ.get("PROCESSOR_IDENTIFIER", "")
    with suppress(OSError):
        maker += Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")[:400]
    return "GenuineIntel" in maker


def _is_half(x_ND: Tensor) -> bool:
    """Whether the numbers are of 2 bytes, which go through another library, for which nothing of this holds."""
    return x_ND.dtype.itemsize < 4


def _weight_first(x_ND: Tensor) -> bool:
    rows, width = x_ND.shape
    if _is_half(x_ND):
        return False
    return rows >= _MANY_ROWS or (not on_intel() and (rows <= 2 or rows * width <= _SMALL))
