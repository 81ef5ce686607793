"""Who runs next: budgets, fairness and preemption, on rows that are numbers and sizes."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.engine.scheduler import Queue, ScheduledRequest, Scheduler


@dataclass
class Room:
    """Memory for so many positions, as a runner has it; and what each branch of a request has of it."""

    size: int
    taken: dict[ScheduledRequest, int] = field(default_factory=dict)

    def free(self) -> int:
        return self.size - sum(room * entry.branches for entry, room in self.taken.items())

    def admit(self, entry: ScheduledRequest) -> bool:
        if entry.length * entry.branches > self.free():
            return False
        self.taken[entry] = entry.length
        entry.done = 0
        return True

    def grow(self, entry: ScheduledRequest, count: int) -> bool:
        more = max(0, entry.done + count - self.taken[entry])
        if more * entry.branches > self.free():
            return False
        self.taken[entry] += more
        return True

    def preempt(self, entry: ScheduledRequest) -> None:
        del self.taken[entry]
        entry.done = 0


def check_comes_to_its_end(scheduler: Scheduler, room: Room, goal: dict[ScheduledRequest, int]) -> None:
    """All requests reach the lengths of `goal`, and no step is larger than it may be."""
    for _ in range(5000):
        step = scheduler.schedule(room.admit, room.grow, room.preempt)
        if not step:
            break
        assert sum(item.count * item.entry.branches for item in step) <= scheduler.tokens
        assert sum(item.count * item.entry.branches for item in step if item.entry.scored) <= scheduler.scored
        assert all(item.count <= scheduler.chunk for item in step)
        assert scheduler.taken == sum(entry.branches for entry in scheduler.running) <= scheduler.rows
        assert len({item.entry for item in step}) == len(step)
        assert room.free() >= 0
        for item in step:
            entry = item.entry
            assert entry in scheduler.running
            entry.done += item.count
            if entry.done == entry.length:
                entry.length += 1
                if entry.length > goal[entry]:
                    del goal[entry]
                    scheduler.running.remove(entry)
                    room.preempt(entry)
    assert goal == {}
    assert not len(scheduler.waiting)
    assert not room.taken


def queue_of(*entries: ScheduledRequest) -> Queue:
    queue = Queue()
    for entry in entries:
        queue.add(entry)
    return queue


def drained(queue: Queue) -> list[int]:
    numbers = []
    while queue.first():
        assert queue.first() is not None
        numbers.append(queue.take().number)
    return numbers


def test_clients_take_turns() -> None:
    """A client who asks for a hundred at once does not keep another waiting after all of them."""
    greedy = [ScheduledRequest(number, "greedy", 1) for number in range(4)]
    queue = queue_of(*greedy, ScheduledRequest(9, "late", 1))
    assert [entry.number for entry in queue.ahead(3)] == [0, 9, 1]
    assert drained(queue) == [0, 9, 1, 2, 3]


def test_what_was_put_back_goes_first_in_its_old_order() -> None:
    queue = queue_of(ScheduledRequest(5, "a", 1))
    queue.put_back(ScheduledRequest(2, "b", 1))
    queue.put_back(ScheduledRequest(1, "a", 1))
    assert len(queue) == 3
    assert [entry.number for entry in queue.ahead(9)] == [1, 2, 5]
    assert drained(queue) == [1, 2, 5]


def test_a_waiting_row_can_be_taken_out() -> None:
    entries = [ScheduledRequest(number, "ab"[number % 2], 1) for number in range(4)]
    queue = queue_of(*entries)
    queue.put_back(back := ScheduledRequest(9, "a", 1))
    assert queue.remove(entries[2])
    assert queue.remove(back)
    assert not queue.remove(entries[2])
    assert drained(queue) == [0, 1, 3]


def test_a_long_text_is_read_in_parts_and_keeps_nobody_waiting() -> None:
    scheduler, room = Scheduler(rows=4, tokens=10, chunk=6), Room(1000)
    writer, reader = ScheduledRequest(0, "", 1), ScheduledRequest(1, "", 100)
    scheduler.waiting.add(writer)
    scheduler.waiting.add(reader)
    counts = []
    for _ in range(3):
        step = scheduler.schedule(room.admit, room.grow, room.preempt)
        counts.append({item.entry.number: item.count for item in step})
        for item in step:
            item.entry.done += item.count
            if item.entry.done == item.entry.length:
                item.entry.length += 1
    assert counts == [{0: 1, 1: 6}] * 3


def test_the_row_that_came_last_goes_back_when_memory_runs_out() -> None:
    scheduler, room = Scheduler(rows=4, tokens=10, chunk=6), Room(5)
    first, last = ScheduledRequest(0, "", 2), ScheduledRequest(1, "", 3)
    scheduler.waiting.add(first)
    scheduler.waiting.add(last)
    for item in scheduler.schedule(room.admit, room.grow, room.preempt):
        item.entry.done += item.count
        item.entry.length += 1
    step = scheduler.schedule(room.admit, room.grow, room.preempt)
    assert [(item.entry.number, item.count) for item in step] == [(0, 1)]
    assert scheduler.waiting.first() is last
    assert last.done == 0


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 12), st.integers(1, 4), st.booleans(), st.booleans()),
        min_size=1,
        max_size=25,
    ),
    rows=st.integers(4, 7),
    chunk=st.integers(1, 9),
    more=st.integers(0, 20),
    memory=st.integers(42 * 4, 300),
    most_scored=st.integers(4, 12),
)
def test_works_of_several_branches_come_to_their_end_within_the_budgets(
    sizes: list[tuple[int, int, int, bool, bool]], rows: int, chunk: int, more: int, memory: int, most_scored: int
) -> None:
    """A branch costs as much as a row, of the step, of the rows and of the memory; and nobody is overtaken for ever."""
    scheduler, room = Scheduler(rows, rows + more, chunk, most_scored), Room(memory)
    goal: dict[ScheduledRequest, int] = {}
    for number, (length, new, branches, one, scored) in enumerate(sizes):
        entry = ScheduledRequest(number, "ab"[one], length, branches=branches, scored=scored)
        goal[entry] = length + new
        scheduler.waiting.add(entry)
    check_comes_to_its_end(scheduler, room, goal)


def test_a_mixture_waits_for_its_rows_and_is_not_overtaken() -> None:
    scheduler, room = Scheduler(rows=4, tokens=10, chunk=6), Room(1000)
    writers = [ScheduledRequest(number, "", 1) for number in range(2)]
    mixture, late = ScheduledRequest(2, "", 1, branches=3), ScheduledRequest(3, "", 1)
    for entry in (*writers, mixture, late):
        scheduler.waiting.add(entry)
    step = scheduler.schedule(room.admit, room.grow, room.preempt)
    assert [item.entry for item in step] == writers
    scheduler.running.remove(writers[0])
    step = scheduler.schedule(room.admit, room.grow, room.preempt)
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
    scheduler, room = Scheduler(rows, rows + more, chunk), Room(memory)
    goal: dict[ScheduledRequest, int] = {}
    for number, (length, new, client) in enumerate(sizes):
        entry = ScheduledRequest(number, client, length)
        goal[entry] = length + new
        scheduler.waiting.add(entry)
    check_comes_to_its_end(scheduler, room, goal)
