"""In which order a product of a few rows with a weight is faster on this processor: x @ W.T or, across, (W @ x.T).T.

Across is two to three times faster on AMD's processors, x @ W.T on Intel's, where MKL has other kernels (LOG.md). The processor's
maker decides and not a measurement, so that a machine gives the same numbers every time.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

# From this many rows on, both orders take the same time on Intel's processors.
_FEW = 16


def across(count: int) -> bool:
    """Whether W @ x.T is the faster order for this many rows, or as fast."""
    return count >= _FEW or not on_intel()


def better_width(count: int) -> int:
    """Rows to run in place of `count`: some larger counts are faster in MKL's products across."""
    if count in (1, 3):
        return count + 1
    return 16 if 8 < count < 16 else count


@cache
def on_intel() -> bool:
    """Whether this is an Intel processor, according to Windows or Linux; False where neither says."""
    name = os.environ.get("PROCESSOR_IDENTIFIER", "")
    with suppress(OSError):
        name += Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")[:400]
    return "GenuineIntel" in name
