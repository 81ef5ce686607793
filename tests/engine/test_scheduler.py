"""Who runs next: budgets, fairness and preemption, on rows that are numbers and sizes."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.engine.scheduler import Queue, Scheduler, Work


@dataclass
class Room:
    """Memory for so many positions, as a runner has it; and what every row has of it."""

    size: int
    taken: dict[Work, int] = field(default_factory=dict)

    def free(self) -> int:
        return self.size - sum(self.taken.values())

    def admit(self, work: Work) -> bool:
        if work.length > self.free():
            return False
        self.taken[work] = work.length
        work.done = 0
        return True

    def grow(self, work: Work, count: int) -> bool:
        more = work.done + count - self.taken[work]
        if more > self.free():
            return False
        self.taken[work] += max(0, more)
        return True

    def let_go(self, work: Work) -> None:
        del self.taken[work]
        work.done = 0


class LaneRoom(Room):
    """Memory where each lane of a work takes its own."""

    def free(self) -> int:
        return self.size - sum(room * work.lanes for work, room in self.taken.items())

    def admit(self, work: Work) -> bool:
        if work.length * work.lanes > self.free():
            return False
        self.taken[work] = work.length
        work.done = 0
        return True

    def grow(self, work: Work, count: int) -> bool:
        more = max(0, work.done + count - self.taken[work])
        if more * work.lanes > self.free():
            return False
        self.taken[work] += more
        return True


def queue_of(*works: Work) -> Queue:
    queue = Queue()
    for work in works:
        queue.add(work)
    return queue


def drained(queue: Queue) -> list[int]:
    numbers = []
    while queue.first():
        assert queue.first() is not None
        numbers.append(queue.take().number)
    return numbers


def test_clients_take_turns() -> None:
    """A client who asks for a hundred at once does not keep another waiting behind all of them."""
    greedy = [Work(number, "greedy", 1) for number in range(4)]
    queue = queue_of(*greedy, Work(9, "late", 1))
    assert [work.number for work in queue.ahead(3)] == [0, 9, 1]
    assert drained(queue) == [0, 9, 1, 2, 3]


def test_what_was_put_back_goes_first_in_its_old_order() -> None:
    queue = queue_of(Work(5, "a", 1))
    queue.put_back(Work(2, "b", 1))
    queue.put_back(Work(1, "a", 1))
    assert len(queue) == 3
    assert [work.number for work in queue.ahead(9)] == [1, 2, 5]
    assert drained(queue) == [1, 2, 5]


def test_a_waiting_row_can_be_taken_out() -> None:
    works = [Work(number, "ab"[number % 2], 1) for number in range(4)]
    queue = queue_of(*works)
    queue.put_back(back := Work(9, "a", 1))
    assert queue.remove(works[2])
    assert queue.remove(back)
    assert not queue.remove(works[2])
    assert drained(queue) == [0, 1, 3]


def test_a_long_text_is_read_in_parts_and_keeps_nobody_waiting() -> None:
    scheduler, room = Scheduler(rows=4, tokens=10, chunk=6), Room(1000)
    writer, reader = Work(0, "", 1), Work(1, "", 100)
    scheduler.waiting.add(writer)
    scheduler.waiting.add(reader)
    counts = []
    for _ in range(3):
        step = scheduler.schedule(room.admit, room.grow, room.let_go)
        counts.append({stretch.work.number: stretch.count for stretch in step})
        for stretch in step:
            stretch.work.done += stretch.count
            if stretch.work.done == stretch.work.length:
                stretch.work.length += 1
    assert counts == [{0: 1, 1: 6}] * 3


def test_the_row_that_came_last_goes_back_when_memory_runs_out() -> None:
    scheduler, room = Scheduler(rows=4, tokens=10, chunk=6), Room(5)
    first, last = Work(0, "", 2), Work(1, "", 3)
    scheduler.waiting.add(first)
    scheduler.waiting.add(last)
    for stretch in scheduler.schedule(room.admit, room.grow, room.let_go):
        stretch.work.done += stretch.count
        stretch.work.length += 1
    step = scheduler.schedule(room.admit, room.grow, room.let_go)
    assert [(stretch.work.number, stretch.count) for stretch in step] == [(0, 1)]
    assert scheduler.waiting.first() is last
    assert last.done == 0


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 12), st.integers(1, 4), st.booleans()), min_size=1, max_size=25
    ),
    rows=st.integers(4, 7),
    chunk=st.integers(1, 9),
    more=st.integers(0, 20),
    memory=st.integers(42 * 4, 300),
)
def test_works_of_several_lanes_come_to_their_end_within_the_budgets(
    sizes: list[tuple[int, int, int, bool]], rows: int, chunk: int, more: int, memory: int
) -> None:
    """A lane costs as much as a row, of the step, of the rows and of the memory; and nobody is overtaken for ever."""
    tokens = rows + more
    scheduler, room = Scheduler(rows, tokens, chunk), LaneRoom(memory)
    goal = {}
    for number, (length, new, lanes, one) in enumerate(sizes):
        work = Work(number, "ab"[one], length, lanes=lanes)
        goal[work] = length + new
        scheduler.waiting.add(work)
    for _ in range(5000):
        step = scheduler.schedule(room.admit, room.grow, room.let_go)
        if not step:
            break
        assert sum(stretch.count * stretch.work.lanes for stretch in step) <= tokens
        assert all(stretch.count <= chunk for stretch in step)
        assert scheduler.taken == sum(work.lanes for work in scheduler.running) <= rows
        assert len({stretch.work for stretch in step}) == len(step)
        assert room.free() >= 0
        for stretch in step:
            work = stretch.work
            assert work in scheduler.running
            work.done += stretch.count
            if work.done == work.length:
                work.length += 1
                if work.length > goal[work]:
                    del goal[work]
                    scheduler.running.remove(work)
                    room.let_go(work)
    assert goal == {}
    assert not len(scheduler.waiting)
    assert not room.taken


def test_a_mixture_waits_for_its_rows_and_is_not_overtaken() -> None:
    scheduler, room = Scheduler(rows=4, tokens=10, chunk=6), Room(1000)
    writers = [Work(number, "", 1) for number in range(2)]
    mixture, late = Work(2, "", 1, lanes=3), Work(3, "", 1)
    for work in (*writers, mixture, late):
        scheduler.waiting.add(work)
    step = scheduler.schedule(room.admit, room.grow, room.let_go)
    assert [stretch.work for stretch in step] == writers
    scheduler.running.remove(writers[0])
    step = scheduler.schedule(room.admit, room.grow, room.let_go)
    assert mixture in scheduler.running
    assert late not in scheduler.running


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12), st.sampled_from("abc")), min_size=1, max_size=25),
    rows=st.integers(1, 6),
    chunk=st.integers(1, 9),
    more=st.integers(0, 20),
    memory=st.integers(42, 120),
)
def test_every_row_comes_to_its_end_within_the_budgets(
    sizes: list[tuple[int, int, str]], rows: int, chunk: int, more: int, memory: int
) -> None:
    """Whatever comes, in whatever memory that holds the largest alone: all end, and no step is larger than it may be."""
    tokens = rows + more
    scheduler, room = Scheduler(rows, tokens, chunk), Room(memory)
    goal = {}
    for number, (length, new, client) in enumerate(sizes):
        work = Work(number, client, length)
        goal[work] = length + new
        scheduler.waiting.add(work)
    for _ in range(5000):
        step = scheduler.schedule(room.admit, room.grow, room.let_go)
        if not step:
            break
        assert sum(stretch.count for stretch in step) <= tokens
        assert all(stretch.count <= chunk for stretch in step)
        assert len(scheduler.running) <= rows
        assert len({stretch.work for stretch in step}) == len(step)
        assert room.free() >= 0
        for stretch in step:
            work = stretch.work
            assert work in scheduler.running
            work.done += stretch.count
            if work.done == work.length:
                work.length += 1
                if work.length > goal[work]:
                    del goal[work]
                    scheduler.running.remove(work)
                    room.let_go(work)
    assert goal == {}
    assert not len(scheduler.waiting)
    assert not room.taken
