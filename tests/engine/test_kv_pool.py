"""Slots: rows come, grow and go, and what they hold stays theirs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sordino.engine.runners.kv_pool import SMALLEST, KeyValues, Shape, State, capacity_for

# Two layers, the second of which keeps keys that are wider than its values, as multi-head latent attention does.
PLANES = ((1, 2), (1, 2), (1, 3), (1, 2))
SHAPE = Shape(PLANES, torch.float32, torch.device("cpu"))


def filled(value: float, length: int) -> State:
    return SHAPE.state(
        [torch.full((heads, length, channels), value + at) for at, (heads, channels) in enumerate(PLANES)]
    )


def same(some: State, others: State) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def finite(store: KeyValues, number: int) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in store.slots[number].pool.tensors)


def test_capacities_double() -> None:
    assert [capacity_for(length) for length in (0, 1, SMALLEST, SMALLEST + 1, 5 * SMALLEST)] == [
        SMALLEST,
        SMALLEST,
        SMALLEST,
        2 * SMALLEST,
        8 * SMALLEST,
    ]


def test_a_pool_without_rows_is_freed() -> None:
    store = KeyValues(SHAPE, 1 << 30)
    assert store.open(1, filled(1, 5), 5)
    assert store.bytes == SMALLEST * SHAPE.position_bytes
    store.close(1)
    assert (store.bytes, store.pools) == (0, {})


def test_what_is_masked_is_finite() -> None:
    """A row that was there before must not leave NaN after its successor's length."""
    store = KeyValues(SHAPE, 1 << 30)
    store.open(1, None, 5)
    assert finite(store, 1)


@settings(max_examples=150, deadline=None)
@given(
    plan=st.lists(
        st.tuples(st.sampled_from(["open", "grow", "close"]), st.integers(0, 5), st.integers(1, 3 * SMALLEST)),
        max_size=40,
    ),
    rooms=st.integers(1, 12),
)
def test_rows_keep_what_they_hold(plan: list[tuple[str, int, int]], rooms: int) -> None:
    budget = rooms * SMALLEST * SHAPE.position_bytes
    store = KeyValues(SHAPE, budget)
    held: dict[int, tuple[float, int]] = {}
    for at, (what, number, length) in enumerate(plan):
        if what == "open" and number not in held:
            if store.open(number, filled(at, length), length):
                held[number] = (at, length)
            else:
                taken = sum(slot.pool.capacity for slot in store.slots.values()) + capacity_for(length)
                assert taken * SHAPE.position_bytes > budget
        elif what == "grow" and number in held:
            store.grow(number, length)
        elif what == "close" and number in held:
            store.close(number)
            del held[number]
        assert store.bytes <= budget
        assert sorted(store.slots) == sorted(held)
        for row, (value, size) in held.items():
            assert same(store.take(row), filled(value, size))
        for pool in store.pools.values():
            assert [store.slots[row].index for row in pool.numbers] == list(range(len(pool.numbers)))


def test_slots_that_nobody_needs_any_more_are_given_back() -> None:
    store = KeyValues(SHAPE, 16 * SMALLEST * SHAPE.position_bytes)
    for number in range(16):
        assert store.open(number, filled(number, 3), 3)
    for number in range(13):
        store.close(number)
    assert store.bytes <= 8 * SMALLEST * SHAPE.position_bytes
    # Those in a pool of half its slots make way for a row of another.
    for number in range(100, 105):
        assert store.open(number, filled(number, 3), 3)
    assert store.open(200, None, 8 * SMALLEST)
    assert [store.take(number)[0][0, 0, 0, 0] for number in range(13, 16)] == [13, 14, 15]


def test_what_a_spoiled_row_held_is_wiped() -> None:
    store = KeyValues(SHAPE, 1 << 30)
    store.open(1, filled(float("nan"), 5), 5)
    store.open(2, filled(2, 5), 5)
    store.close(1, spoiled=True)
    assert finite(store, 2)
    store.open(3, None, 5)
    assert finite(store, 3)


def test_a_row_that_cannot_grow_for_want_of_memory_stays_as_it_was() -> None:
    """Its engine closes it next, and would look for it in vain."""

    class Full(Shape):
        def empty(self, slots: int, capacity: int) -> list[Tensor]:
            if capacity > SMALLEST:
                raise torch.OutOfMemoryError("full")
            return super().empty(slots, capacity)

    store = KeyValues(Full(PLANES, torch.float32, torch.device("cpu")), 1 << 30)
    for number in range(2):
        store.open(number, filled(number, 5), 5)
        with pytest.raises(torch.OutOfMemoryError):
            store.grow(number, SMALLEST + 1)
    for number in range(2):
        assert same(store.take(number), filled(number, 5))
        store.close(number)
    assert store.pools == {}


def test_a_pool_that_cannot_be_copied_stays_as_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are closed where memory has run out, too."""
    store = KeyValues(SHAPE, 1 << 30)
    for number in range(8):
        store.open(number, filled(number, 5), 5)

    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(Tensor, "clone", full)
    for number in range(7):
        store.close(number)
    monkeypatch.undo()
    assert store.bytes == 8 * SMALLEST * SHAPE.position_bytes
    assert same(store.take(7), filled(7, 5))
    store.close(7)
    assert store.bytes == 0


def test_planes_of_several_sizes_are_found() -> None:
    store = KeyValues(SHAPE, 1 << 30)
    store.open(1, filled(10, 5), 5)
    assert SHAPE.position_bytes == 9 * 4
    for plane, (heads, channels) in enumerate(PLANES):
        held = store.slots[1].pool.plane(plane)[0, :, :5]
        assert torch.equal(held, torch.full((heads, 5, channels), 10.0 + plane))
