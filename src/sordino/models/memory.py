"""Memory use, and one error for memory that runs out, whichever allocator raised it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from sordino.errors import OutOfMemory


@contextmanager
def memory_errors(doing: str, do: str) -> Iterator[None]:
    """Memory that runs out inside becomes `OutOfMemory`: "memory ran out in {doing}", with what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        got = str(error).splitlines()[0][:120] if str(error) else ""
        raise OutOfMemory(f"memory ran out in {doing}", got=got, do=do) from None


def ran_out(error: BaseException) -> bool:
    """Whether this error says that memory ran out. The CPU allocator, and CUDA's
    libraries (CUBLAS_STATUS_ALLOC_FAILED), raise a plain RuntimeError.
    """
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("can't allocate memory", "not enough memory", "ALLOC_FAILED"))
    )


def peak_bytes() -> int:
    """The most memory that this process has held."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    # KiB on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
