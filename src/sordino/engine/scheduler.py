"""Who runs next. Pure: rows are numbers and sizes here, and nothing is known of models.

A step has room for `tokens` positions. Rows that write take one each; what is left goes to rows that still read their text, a
stretch at a time, so that a long text never keeps the others waiting; what is left then admits waiting rows, the clients in
turn. Where memory runs out the row that came last goes back to the front of the queue, and reads again later.

A work may be of several lanes, which run side by side: each of its positions costs one for every lane, and it takes as many rows.
Nobody overtakes one that waits for its rows.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest


@dataclass(eq=False)
class Work:
    """A request as the scheduler sees it. length: positions of its text; done: how many have been run, in all of its lanes."""

    number: int
    client: str
    length: int
    done: int = 0
    lanes: int = 1

    @property
    def reads(self) -> bool:
        """Whether more than its newest token is still to be run."""
        return self.length - self.done > 1


@dataclass(frozen=True)
class Stretch:
    """Run `count` positions of a work, from its first that was not run."""

    work: Work
    count: int


class Queue:
    """Waiting rows, the clients in turn, each client's own in their order. Rows that were put back go first."""

    def __init__(self) -> None:
        self._put_back: deque[Work] = deque()
        self._of: OrderedDict[str, deque[Work]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._put_back) + sum(map(len, self._of.values()))

    def add(self, work: Work) -> None:
        self._of.setdefault(work.client, deque()).append(work)

    def put_back(self, work: Work) -> None:
        self._put_back.appendleft(work)

    def ahead(self, count: int) -> list[Work]:
        """The next `count`, in the order in which they would be taken."""
        rounds = zip_longest(*self._of.values())
        in_turn = (work for some in rounds for work in some if work is not None)
        return list(islice(chain(self._put_back, in_turn), count))

    def first(self) -> Work | None:
        if self._put_back:
            return self._put_back[0]
        return next(iter(self._of.values()))[0] if self._of else None

    def take(self) -> Work:
        """Remove the first; its client goes behind the others."""
        if self._put_back:
            return self._put_back.popleft()
        client, works = self._of.popitem(last=False)
        work = works.popleft()
        if works:
            self._of[client] = works
        return work

    def remove(self, work: Work) -> bool:
        if work in self._put_back:
            self._put_back.remove(work)
            return True
        works = self._of.get(work.client)
        if works is None or work not in works:
            return False
        works.remove(work)
        if not works:
            del self._of[work.client]
        return True


@dataclass
class Scheduler:
    """rows: most that run at once. tokens: most positions in a step. chunk: most positions a row reads in one step."""

    rows: int
    tokens: int
    chunk: int
    running: list[Work] = field(default_factory=list)
    waiting: Queue = field(default_factory=Queue)

    def schedule(
        self, admit: Callable[[Work], bool], grow: Callable[[Work, int], bool], let_go: Callable[[Work], None]
    ) -> list[Stretch]:
        """The stretches of the next step.

        admit: opens a row with room for its text, or says that there is none; it sets `done`. grow: makes room for so many
        positions more, or says that there is none. let_go: closes a row that goes back to the queue; it sets `done`.
        """
        stretches: dict[Work, int] = {}
        left = self.tokens
        # Rows that write come first: they need one position each, and people watch them.
        for work in sorted(self.running, key=lambda work: work.reads):
            count = self._count(work, left)
            while work in self.running and count and not grow(work, count):
                last = self.running.pop()
                let_go(last)
                self.waiting.put_back(last)
                left += stretches.pop(last, 0) * last.lanes
            if work in self.running and count:
                stretches[work] = count
                left -= count * work.lanes
        while (first := self.waiting.first()) and first.lanes <= min(left, self.rows - self.taken) and admit(first):
            work = self.waiting.take()
            self.running.append(work)
            stretches[work] = self._count(work, left)
            left -= stretches[work] * work.lanes
        return [Stretch(work, count) for work, count in stretches.items()]

    @property
    def taken(self) -> int:
        """Rows that run: lanes, of all works."""
        return sum(work.lanes for work in self.running)

    def _count(self, work: Work, left: int) -> int:
        """The positions that a work runs next, where the step has room for so many more."""
        return min(work.length - work.done, max(1, self.chunk // work.lanes), left // work.lanes)
