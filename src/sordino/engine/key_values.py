"""Keys and values of the rows that run: each row on a shelf of rows of equal room, from its first position on.

A shelf is one tensor, its rows side by side without holes, so that attention over all of them is one call on a view, and
nothing is copied while they write. A row that outgrows its shelf moves to the next one, of twice the room.

Shape key: L layers, N rows of a shelf, H key-value heads, S positions, C channels of a head. Axis 1 (2): keys, values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
        """Taken by rows: each as much as its shelf gives it."""
        return sum(place.shelf.room for place in self.places.values()) * self.shape.position_bytes

    def fits(self, room: int, instead_of: int = 0) -> bool:
        return self.bytes + (room - instead_of) * self.shape.position_bytes <= self.budget

    def could_hold(self, length: int) -> bool:
        """Whether a row of so many positions fits when there is no other."""
        return room_for(length) * self.shape.position_bytes <= self.budget

    def open(self, number: int, front: Tensor | None, length: int) -> bool:
        """Give a row room for `length` positions, of which `front` [L, 2, H, S, C] are the first. False: there is no room."""
        room = room_for(length)
        if not self.fits(room):
            return False
        place = self._put(number, room)
        if front is not None:
            place.length = front.shape[3]
            place.shelf.tensor[:, :, place.index, :, : place.length] = front
        return True

    def grow(self, number: int, length: int) -> bool:
        """Make room for `length` positions in all. False: there is no room."""
        old = self.places[number]
        room = room_for(length)
        if room <= old.shelf.room:
            return True
        if not self.fits(room, old.shelf.room):
            return False
        kept = self.take(number)
        self.close(number)
        place = self._put(number, room)
        place.length = kept.shape[3]
        place.shelf.tensor[:, :, place.index, :, : place.length] = kept
        return True

    def take(self, number: int) -> Tensor:
        """A copy of what a row holds: [L, 2, H, S, C]."""
        place = self.places[number]
        return place.shelf.tensor[:, :, place.index, :, : place.length].clone()

    def close(self, number: int) -> None:
        """The last row of the shelf moves into the hole; a shelf without rows is given back."""
        place = self.places.pop(number)
        shelf = place.shelf
        last = shelf.numbers.pop()
        if last != number:
            moved = self.places[last]
            shelf.tensor[:, :, place.index, :, : moved.length] = shelf.tensor[:, :, moved.index, :, : moved.length]
            shelf.numbers[place.index] = last
            moved.index = place.index
        if not shelf.numbers:
            del self.shelves[shelf.room]

    def _put(self, number: int, room: int) -> Place:
        shelf = self.shelves.get(room)
        if shelf is None:
            shelf = self.shelves[room] = Shelf(room, self.shape.empty(1, room), [])
        rows = shelf.tensor.shape[2]
        if len(shelf.numbers) == rows:
            wider = self.shape.empty(2 * rows, room)
            wider[:, :, :rows] = shelf.tensor
            shelf.tensor = wider
        place = self.places[number] = Place(shelf, len(shelf.numbers), 0)
        shelf.numbers.append(number)
        return place
