"""The KV cache of the rows that run: each row in a slot, in a pool of slots of one capacity.

A pool's slots have no gaps between them: attention over all of them is one call on a view, and nothing is copied while rows write.
A row that outgrows its slot moves to the next pool, whose slots have twice the capacity. A full pool doubles its slots, one that is
three quarters empty halves them; for that moment both copies exist.

Shape key: N slots of a pool, H key-value heads, S positions, C channels of a head, M rows that run, T positions of a text, W planes
of one size. A plane is the keys, or the values, of one layer: plane 2 * layer, or 2 * layer + 1. Models whose planes are all of one
size, which are nearly all, have one tensor a pool; others have one for each size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sordino.forward.weighting import PromptSpan
from sordino.models.memory import ran_out

SMALLEST = 256
# What a row holds, for each size of plane: [W, H, S, C].
State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Shape:
    """The layout of one position. planes: (heads, channels) of each."""

    planes: tuple[tuple[int, int], ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def position_bytes(self) -> int:
        return sum(heads * channels for heads, channels in self.planes) * self.dtype.itemsize

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The different sizes of planes, one tensor each."""
        return tuple(dict.fromkeys(self.planes))

    @cached_property
    def where(self) -> tuple[tuple[int, int], ...]:
        """For each plane its tensor, and its index there."""
        return tuple(
            (self.sizes.index(size), self.planes[:plane].count(size)) for plane, size in enumerate(self.planes)
        )

    def empty(self, slots: int, capacity: int) -> list[Tensor]:
        """For each size [W, N, H, S, C]. Zeros, because masked positions must be finite."""
        return [
            torch.zeros(
                (self.planes.count(size), slots, size[0], capacity, size[1]), dtype=self.dtype, device=self.device
            )
            for size in self.sizes
        ]

    def state(self, planes: Sequence[Tensor]) -> State:
        """What a row holds, from its planes [H, S, C] in their order."""
        return tuple(
            torch.stack([plane for plane, of in zip(planes, self.planes, strict=True) if of == size])
            for size in self.sizes
        )


@dataclass(eq=False)
class Pool:
    """Slots 0 to len(numbers) - 1 are taken, by the engine's rows of these numbers."""

    shape: Shape
    capacity: int
    tensors: list[Tensor]
    numbers: list[int]

    @property
    def slots(self) -> int:
        return self.tensors[0].shape[1]

    @property
    def positions(self) -> int:
        return self.slots * self.capacity

    def plane(self, plane: int) -> Tensor:
        """[N, H, S, C]"""
        tensor, at = self.shape.where[plane]
        return self.tensors[tensor][at]


@dataclass(eq=False)
class Slot:
    """Where a row's keys and values are. length: filled positions."""

    pool: Pool
    index: int
    length: int

    def write(self, state: State) -> None:
        """Fill the first positions."""
        self.length = state[0].shape[2]
        for tensor, held in zip(self.pool.tensors, state, strict=True):
            tensor[:, self.index, :, : self.length] = held

    def read(self) -> State:
        """A view of what the row holds."""
        return tuple(tensor[:, self.index, :, : self.length] for tensor in self.pool.tensors)


@dataclass(frozen=True)
class SlotSpan:
    """The next ids of the row in a slot. prompt: where the row has its soft prompt, if text gives it more or less attention."""

    slot: Slot
    ids: Sequence[int]
    prompt: PromptSpan | None = None

    @property
    def positions(self) -> range:
        return range(self.slot.length, self.slot.length + len(self.ids))


def capacity_for(length: int) -> int:
    """The capacity of the slot for a row of this length."""
    capacity = SMALLEST
    while capacity < length:
        capacity *= 2
    return capacity


class KeyValues:
    """All pools, within a budget of bytes; rows go by their numbers. first_slots: of a new pool, if the budget has the room."""

    def __init__(self, shape: Shape, budget: int, *, first_slots: int = 1) -> None:
        self.shape, self.budget, self._first_slots = shape, budget, first_slots
        self.pools: dict[int, Pool] = {}
        self.slots: dict[int, Slot] = {}

    @property
    def bytes(self) -> int:
        """Of all pools, free slots included."""
        return sum(pool.positions for pool in self.pools.values()) * self.shape.position_bytes

    @property
    def most_positions(self) -> int:
        """The longest row that fits when it is the only one."""
        capacity, most = SMALLEST, 0
        while capacity * self.shape.position_bytes <= self.budget:
            most, capacity = capacity, capacity * 2
        return most

    def holds(self, lengths: Sequence[int]) -> bool:
        """Whether rows of these lengths fit when there are no others."""
        return sum(map(capacity_for, lengths)) * self.shape.position_bytes <= self.budget

    def fits(self, length: int) -> bool:
        """Whether one more row of this length fits."""
        return self._has(capacity_for(length))

    def open(self, number: int, front: State | None, length: int) -> bool:
        """Give a row a slot for `length` positions, of which `front` are the first. False: none fits."""
        if not self.fits(length):
            return False
        slot = self._put(number, capacity_for(length))
        if front is not None:
            slot.write(front)
        return True

    def grow(self, number: int, length: int) -> bool:
        """Make room for `length` positions in all. False: there is none. If memory runs out, the row stays as it was."""
        old, capacity = self.slots[number], capacity_for(length)
        if capacity <= old.pool.capacity:
            return True
        if not self._has(capacity - old.pool.capacity):
            return False
        self._put(number, capacity).write(old.read())
        self._free(old)
        if self.bytes > self.budget:
            self._trim()
        return True

    def take(self, number: int) -> State:
        """A copy of what a row holds."""
        return tuple(held.clone() for held in self.slots[number].read())

    def close(self, number: int, *, spoiled: bool = False) -> None:
        """spoiled: the row may hold values that are not finite, which no mask hides from the next row in its slot."""
        slot = self.slots.pop(number)
        if spoiled:
            for tensor in slot.pool.tensors:
                tensor[:, slot.index].zero_()
        self._free(slot)

    def _free(self, slot: Slot) -> None:
        """Move the pool's last row into the gap; free a pool without rows."""
        pool = slot.pool
        last = pool.numbers.pop()
        if slot.index < len(pool.numbers):
            moved = self.slots[last]
            held, moved.index = moved.read(), slot.index
            moved.write(held)
            pool.numbers[slot.index] = last
        if not pool.numbers:
            del self.pools[pool.capacity]
        elif 4 * len(pool.numbers) <= pool.slots:
            _cut(pool, pool.slots // 2)

    def _trim(self) -> None:
        """Free the slots that no row has."""
        for pool in self.pools.values():
            if len(pool.numbers) < pool.slots:
                _cut(pool, len(pool.numbers))

    def _has(self, positions: int) -> bool:
        """Whether so many more positions are within the budget, once free slots are given back."""
        taken = sum(len(pool.numbers) * pool.capacity for pool in self.pools.values())
        return (taken + positions) * self.shape.position_bytes <= self.budget

    def _put(self, number: int, capacity: int) -> Slot:
        pool = self.pools.get(capacity)
        if pool is None or len(pool.numbers) == pool.slots:
            pool = self._widened(capacity)
        slot = self.slots[number] = Slot(pool, len(pool.numbers), 0)
        pool.numbers.append(number)
        return slot

    def _widened(self, capacity: int) -> Pool:
        """The pool of this capacity with twice its slots, or as many as the budget allows, and one more at least."""
        size = capacity * self.shape.position_bytes
        if self.bytes + size > self.budget:
            self._trim()
        pool = self.pools.get(capacity)
        slots, more = (0, self._first_slots) if pool is None else (pool.slots, pool.slots)
        tensors = self.shape.empty(slots + max(1, min(more, (self.budget - self.bytes) // size)), capacity)
        if pool is None:
            pool = self.pools[capacity] = Pool(self.shape, capacity, tensors, [])
        else:
            for wide, tensor in zip(tensors, pool.tensors, strict=True):
                wide[:, :slots] = tensor
            pool.tensors = tensors
        return pool


def _cut(pool: Pool, slots: int) -> None:
    """Shrink a pool to so many slots. Without memory for the copy it keeps them all, which only costs room."""
    try:
        pool.tensors = [tensor[:, :slots].clone() for tensor in pool.tensors]
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
