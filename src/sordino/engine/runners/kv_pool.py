"""Keys and values of the rows that run: each row on a shelf of rows of equal room, from its first position on.

A shelf is one tensor, its rows side by side without holes, so that attention over all of them is one call on a view, and
nothing is copied while they write. A row that outgrows its shelf moves to the next one, of twice the room. A full shelf is made
twice as wide, one that is three quarters empty half as wide; while that is done both are there.

Shape key: L layers, N rows of a shelf, H key-value heads, S positions, C channels of a head. Axis 1 (2): keys, values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sordino.models.memory import ran_out

SMALLEST = 256


@dataclass(frozen=True)
class Shape:
    """What one position takes."""

    layers: int
    heads: int
    channels: int
    dtype: torch.dtype
    device: torch.device

    @property
    def position_bytes(self) -> int:
        return self.layers * 2 * self.heads * self.channels * self.dtype.itemsize

    def empty(self, rows: int, room: int) -> Tensor:
        """[L, 2, N, H, S, C]. Zeros: what is masked must be finite."""
        sizes = (self.layers, 2, rows, self.heads, room, self.channels)
        return torch.zeros(sizes, dtype=self.dtype, device=self.device)


@dataclass(eq=False)
class Shelf:
    """Rows 0 .. len(numbers) - 1 of `tensor` are taken, by the engine's rows of these numbers."""

    room: int
    tensor: Tensor
    numbers: list[int]

    @property
    def rows(self) -> int:
        return self.tensor.shape[2]

    @property
    def positions(self) -> int:
        return self.rows * self.room


@dataclass(eq=False)
class Place:
    """Where a row is. length: positions that are filled."""

    shelf: Shelf
    index: int
    length: int


def room_for(length: int) -> int:
    """The room of the shelf for a row of so many positions."""
    room = SMALLEST
    while room < length:
        room *= 2
    return room


class KeyValues:
    """All shelves, within a budget of bytes. A row is known by its number."""

    def __init__(self, shape: Shape, budget: int) -> None:
        self.shape, self.budget = shape, budget
        self.shelves: dict[int, Shelf] = {}
        self.places: dict[int, Place] = {}

    @property
    def bytes(self) -> int:
        """Of all shelves, places that no row has taken included."""
        return sum(shelf.positions for shelf in self.shelves.values()) * self.shape.position_bytes

    @property
    def most_positions(self) -> int:
        """The longest row that fits when there is no other."""
        room, most = SMALLEST, 0
        while room * self.shape.position_bytes <= self.budget:
            most, room = room, room * 2
        return most

    def holds(self, lengths: Sequence[int]) -> bool:
        """Whether rows of these lengths fit when there are no others."""
        return sum(map(room_for, lengths)) * self.shape.position_bytes <= self.budget

    def fits(self, length: int) -> bool:
        """Whether there is room for one row more, of so many positions."""
        return self._has(room_for(length))

    def open(self, number: int, front: Tensor | None, length: int) -> bool:
        """Give a row room for `length` positions, of which `front` [L, 2, H, S, C] are the first. False: there is no room."""
        if not self.fits(length):
            return False
        place = self._put(number, room_for(length))
        if front is not None:
            place.length = front.shape[3]
            place.shelf.tensor[:, :, place.index, :, : place.length] = front
        return True

    def grow(self, number: int, length: int) -> bool:
        """Make room for `length` positions in all. False: there is no room. Where memory runs out the row stays as it was."""
        old, room = self.places[number], room_for(length)
        if room <= old.shelf.room:
            return True
        if not self._has(room - old.shelf.room):
            return False
        place = self._put(number, room)
        place.length = old.length
        place.shelf.tensor[:, :, place.index, :, : place.length] = old.shelf.tensor[:, :, old.index, :, : old.length]
        self._leave(old)
        if self.bytes > self.budget:
            self._give_back()
        return True

    def take(self, number: int) -> Tensor:
        """A copy of what a row holds: [L, 2, H, S, C]."""
        place = self.places[number]
        return place.shelf.tensor[:, :, place.index, :, : place.length].clone()

    def close(self, number: int, *, spoiled: bool = False) -> None:
        """spoiled: what the row holds may be no numbers, which no mask hides from the next row at its place."""
        place = self.places.pop(number)
        if spoiled:
            place.shelf.tensor[:, :, place.index].zero_()
        self._leave(place)

    def _leave(self, place: Place) -> None:
        """The last row of the shelf moves into the hole; a shelf without rows is given back."""
        shelf = place.shelf
        last = shelf.numbers.pop()
        if place.index < len(shelf.numbers):
            moved = self.places[last]
            shelf.tensor[:, :, place.index, :, : moved.length] = shelf.tensor[:, :, moved.index, :, : moved.length]
            shelf.numbers[place.index] = last
            moved.index = place.index
        if not shelf.numbers:
            del self.shelves[shelf.room]
        elif 4 * len(shelf.numbers) <= shelf.rows:
            _cut(shelf, shelf.rows // 2)

    def _give_back(self) -> None:
        """Places that no row has taken."""
        for shelf in self.shelves.values():
            if len(shelf.numbers) < shelf.rows:
                _cut(shelf, len(shelf.numbers))

    def _has(self, positions: int) -> bool:
        """Whether so many more are within the budget, once places that no row has taken are given back."""
        taken = sum(len(shelf.numbers) * shelf.room for shelf in self.shelves.values())
        return (taken + positions) * self.shape.position_bytes <= self.budget

    def _put(self, number: int, room: int) -> Place:
        shelf = self.shelves.get(room)
        if shelf is None or len(shelf.numbers) == shelf.rows:
            shelf = self._widened(room)
        place = self.places[number] = Place(shelf, len(shelf.numbers), 0)
        shelf.numbers.append(number)
        return place

    def _widened(self, room: int) -> Shelf:
        """The shelf of this room with twice its places, or as many as the budget has, and one at least."""
        size = room * self.shape.position_bytes
        if self.bytes + size > self.budget:
            self._give_back()
        shelf = self.shelves.get(room)
        rows = 0 if shelf is None else shelf.rows
        tensor = self.shape.empty(rows + max(1, min(rows, (self.budget - self.bytes) // size)), room)
        if shelf is None:
            shelf = self.shelves[room] = Shelf(room, tensor, [])
        else:
            tensor[:, :, :rows] = shelf.tensor
            shelf.tensor = tensor
        return shelf


def _cut(shelf: Shelf, rows: int) -> None:
    """Leave a shelf so many places. Without memory for the copy it stays as wide: nothing is lost but room."""
    try:
        shelf.tensor = shelf.tensor[:, :, :rows].clone()
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
