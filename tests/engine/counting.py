"""Costs in steps of the interpreter, which are the same on every machine."""

from __future__ import annotations

import gc
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


def steps_of(action: Callable[[], object]) -> int:
    """The calls, lines and returns of Python in `action`."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> object:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    # A collection would count the finalizers of whatever earlier tests left after.
    gc.disable()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


class CountedDict(OrderedDict[Any, Any]):
    """Whoever goes through it takes a step for each key, in C too: list(), sorted(), min()."""

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        for key in self:
            yield self[key]

    def items(self) -> Iterator[tuple[Any, Any]]:  # type: ignore[override]
        for key in self:
            yield key, self[key]


class CountedList(list[Any]):
    """Whoever goes through it, or a part of it, takes a step for each item."""

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return CountedList(found) if isinstance(at, slice) else found
