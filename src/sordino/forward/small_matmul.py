"""Which way round a product of a few rows with a weight is quicker here, x @ W.T or, across, (W @ x.T).T.

On AMD's processors across, two to three times; on Intel's, where MKL takes other ways, x @ W.T (LOG.md). By the processor's maker
and not by a measurement, so that a machine gives the same numbers every time.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

# From so many rows on both ways round take the same time on Intel's processors.
_FEW = 16


def across(count: int) -> bool:
    """Whether W @ x.T is the quicker way round for so many rows, or as quick."""
    return count >= _FEW or not on_intel()


def better_width(count: int) -> int:
    """Rows to run in place of `count`: across, MKL's products are quicker for some more than for fewer."""
    if count in (1, 3):
        return count + 1
    return 16 if 8 < count < 16 else count


@cache
def on_intel() -> bool:
    """Whether this is a processor of Intel's, as Windows and Linux say; False where nobody says."""
    said = os.environ.get("PROCESSOR_IDENTIFIER", "")
    with suppress(OSError):
        said += Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")[:400]
    return "GenuineIntel" in said
