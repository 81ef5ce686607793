"""Memory that runs out, said in one way whichever allocator ran out of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sordino.errors import OutOfMemory


@contextmanager
def memory_named(doing: str, do: str) -> Iterator[None]:
    """Memory that runs out inside becomes `OutOfMemory`: "memory ran out in {doing}", with what to do."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _named(error, doing, do) from None
    except RuntimeError as error:
        # The CPU allocator raises a plain RuntimeError.
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise _named(error, doing, do) from None
        raise


def _named(error: BaseException, doing: str, do: str) -> OutOfMemory:
    got = str(error).splitlines()[0][:120] if str(error) else ""
    return OutOfMemory(f"memory ran out in {doing}", got=got, do=do)
