"""Who runs next. Pure: rows are numbers and sizes here, and nothing is known of models.

A step holds `tokens` positions. Rows that decode take one each; what is left goes to rows in their prefill, a chunk at a time, so
that a long text never keeps the others waiting; what is left then admits waiting requests, the clients in turn. Where memory runs
out the request that came last goes back to the front of the queue, and reads its text again later.

A request may have several branches, which run side by side: each of its positions costs one for every branch, and it takes as many
rows. Nobody overtakes a request that waits for its rows.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest


@dataclass(eq=False)
class ScheduledRequest:
    """A request as the scheduler sees it. length: positions of its text; done: how many have been run, in all of its branches."""

    number: int
    client: str
    length: int
    done: int = 0
    branches: int = 1

    @property
    def prefills(self) -> bool:
        """Whether more than its newest token is still to be run."""
        return self.length - self.done > 1


@dataclass(frozen=True)
class ScheduledTokens:
    """Run `count` positions of a request, from its first that was not run."""

    entry: ScheduledRequest
    count: int


class Queue:
    """Waiting rows, the clients in turn, each client's own in their order. Rows that were put back go first."""

    def __init__(self) -> None:
        self._put_back: deque[ScheduledRequest] = deque()
        self._of: OrderedDict[str, deque[ScheduledRequest]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._put_back) + sum(map(len, self._of.values()))

    def add(self, entry: ScheduledRequest) -> None:
        self._of.setdefault(entry.client, deque()).append(entry)

    def put_back(self, entry: ScheduledRequest) -> None:
        self._put_back.appendleft(entry)

    def ahead(self, count: int) -> list[ScheduledRequest]:
        """The next `count`, in the order in which they would be taken."""
        rounds = zip_longest(*self._of.values())
        in_turn = (entry for some in rounds for entry in some if entry is not None)
        return list(islice(chain(self._put_back, in_turn), count))

    def first(self) -> ScheduledRequest | None:
        if self._put_back:
            return self._put_back[0]
        return next(iter(self._of.values()))[0] if self._of else None

    def take(self) -> ScheduledRequest:
        """Remove the first; its client goes behind the others."""
        if self._put_back:
            return self._put_back.popleft()
        client, entries = self._of.popitem(last=False)
        entry = entries.popleft()
        if entries:
            self._of[client] = entries
        return entry

    def remove(self, entry: ScheduledRequest) -> bool:
        if entry in self._put_back:
            self._put_back.remove(entry)
            return True
        entries = self._of.get(entry.client)
        if entries is None or entry not in entries:
            return False
        entries.remove(entry)
        if not entries:
            del self._of[entry.client]
        return True


@dataclass
class Scheduler:
    """rows: most that run at once. tokens: most positions in a step. chunk: most positions a row reads in one step."""

    rows: int
    tokens: int
    chunk: int
    running: list[ScheduledRequest] = field(default_factory=list)
    waiting: Queue = field(default_factory=Queue)

    def schedule(
        self,
        admit: Callable[[ScheduledRequest], bool],
        grow: Callable[[ScheduledRequest, int], bool],
        preempt: Callable[[ScheduledRequest], None],
    ) -> list[ScheduledTokens]:
        """What runs in the next step.

        admit: opens a row with room for its text, or says that there is none; it sets `done`. grow: makes room for so many
        positions more, or says that there is none. preempt: closes a row that goes back to the queue; it sets `done`.
        """
        scheduled: dict[ScheduledRequest, int] = {}
        left = self.tokens
        # Rows that write come first: they need one position each, and people watch them.
        for entry in sorted(self.running, key=lambda entry: entry.prefills):
            count = self._count(entry, left)
            while entry in self.running and count and not grow(entry, count):
                last = self.running.pop()
                preempt(last)
                self.waiting.put_back(last)
                left += scheduled.pop(last, 0) * last.branches
            if entry in self.running and count:
                scheduled[entry] = count
                left -= count * entry.branches
        while (first := self.waiting.first()) and first.branches <= min(left, self.rows - self.taken) and admit(first):
            entry = self.waiting.take()
            self.running.append(entry)
            scheduled[entry] = self._count(entry, left)
            left -= scheduled[entry] * entry.branches
        return [ScheduledTokens(entry, count) for entry, count in scheduled.items()]

    @property
    def taken(self) -> int:
        """Rows that run: branches, of all requests."""
        return sum(entry.branches for entry in self.running)

    def _count(self, entry: ScheduledRequest, left: int) -> int:
        """The positions that a request runs next, where the step has room for so many more."""
        return min(entry.length - entry.done, max(1, self.chunk // entry.branches), left // entry.branches)
