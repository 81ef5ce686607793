"""Which requests run next. Pure: requests are numbers and sizes here, and nothing is known of models.

A step holds `tokens` positions. Requests that decode take one each. Requests in their prefill share the rest, a chunk each, so that
a long text never blocks the others. What remains admits waiting requests, the clients in turn. When memory runs out, the request
that came last goes back to the front of the queue and runs its text again later.

A request with several branches takes as many rows, and each of its positions counts once for every branch. No other request
overtakes one that waits for its rows. A text that is scored needs the logits of all its positions, which take memory: a step holds
only `scored` of them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest


@dataclass(eq=False)
class ScheduledRequest:
    """A request as the scheduler sees it. length: positions of its text; done: how many have run in all of its branches.
    scored: whether the logits of all positions are wanted, not of the last one alone.
    """

    number: int
    client: str
    length: int
    done: int = 0
    branches: int = 1
    scored: bool = False

    @property
    def prefills(self) -> bool:
        """Whether more than its newest token has yet to run."""
        return self.length - self.done > 1


@dataclass(frozen=True)
class ScheduledTokens:
    """Run the next `count` positions of a request."""

    entry: ScheduledRequest
    count: int


class Queue:
    """Waiting requests: clients take turns, each client's own keep their order. Requests that were put back go first."""

    def __init__(self) -> None:
        self._put_back: deque[ScheduledRequest] = deque()
        self._of_client: OrderedDict[str, deque[ScheduledRequest]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._put_back) + sum(map(len, self._of_client.values()))

    def add(self, entry: ScheduledRequest) -> None:
        self._of_client.setdefault(entry.client, deque()).append(entry)

    def put_back(self, entry: ScheduledRequest) -> None:
        self._put_back.appendleft(entry)

    def ahead(self, count: int) -> list[ScheduledRequest]:
        """The next `count`, in the order in which `take` returns them."""
        rounds = zip_longest(*self._of_client.values())
        in_turn = (entry for entries in rounds for entry in entries if entry is not None)
        return list(islice(chain(self._put_back, in_turn), count))

    def first(self) -> ScheduledRequest | None:
        if self._put_back:
            return self._put_back[0]
        return next(iter(self._of_client.values()))[0] if self._of_client else None

    def take(self) -> ScheduledRequest:
        """Remove the first; its client goes to the end."""
        if self._put_back:
            return self._put_back.popleft()
        client, entries = self._of_client.popitem(last=False)
        entry = entries.popleft()
        if entries:
            self._of_client[client] = entries
        return entry

    def remove(self, entry: ScheduledRequest) -> bool:
        if entry in self._put_back:
            self._put_back.remove(entry)
            return True
        entries = self._of_client.get(entry.client)
        if entries is None or entry not in entries:
            return False
        entries.remove(entry)
        if not entries:
            del self._of_client[entry.client]
        return True


@dataclass
class Scheduler:
    """rows: most that run at once. tokens: most positions in a step. chunk: most positions of one request in a step. scored: most
    positions in a step of requests that are scored; at least the branches of any.
    """

    rows: int
    tokens: int
    chunk: int
    scored: int = 1 << 30
    running: list[ScheduledRequest] = field(default_factory=list)
    waiting: Queue = field(default_factory=Queue)

    def schedule(
        self,
        admit: Callable[[ScheduledRequest], bool],
        grow: Callable[[ScheduledRequest, int], bool],
        preempt: Callable[[ScheduledRequest], None],
    ) -> list[ScheduledTokens]:
        """The positions to run in the next step.

        admit: opens a request with room for its text and sets `done`; False without room. grow: makes room for so many more
        positions; False without room. preempt: closes a request that goes back to the queue and sets `done`.
        """
        scheduled: dict[ScheduledRequest, int] = {}
        left = _Room(self.tokens, self.scored)
        # Requests that decode come first: they need one position each, and people watch them.
        for entry in sorted(self.running, key=lambda entry: entry.prefills):
            count = self._count(entry, left)
            while entry in self.running and count and not grow(entry, count):
                last = self.running.pop()
                preempt(last)
                self.waiting.put_back(last)
                left.take(last, -scheduled.pop(last, 0))
            if entry in self.running and count:
                scheduled[entry] = count
                left.take(entry, count)
        while (
            (first := self.waiting.first())
            and left.of(first)
            and first.branches <= self.rows - self.taken
            and admit(first)
        ):
            entry = self.waiting.take()
            self.running.append(entry)
            scheduled[entry] = self._count(entry, left)
            left.take(entry, scheduled[entry])
        return [ScheduledTokens(entry, count) for entry, count in scheduled.items()]

    @property
    def taken(self) -> int:
        """Running rows: the branches of all running requests."""
        return sum(entry.branches for entry in self.running)

    def _count(self, entry: ScheduledRequest, left: _Room) -> int:
        """How many positions a request runs next, in a step with this room."""
        return min(entry.length - entry.done, max(1, self.chunk // entry.branches), left.of(entry))


@dataclass
class _Room:
    """Of a step, as in `Scheduler`."""

    tokens: int
    scored: int

    def of(self, entry: ScheduledRequest) -> int:
        """For how many positions of a request."""
        return (min(self.tokens, self.scored) if entry.scored else self.tokens) // entry.branches

    def take(self, entry: ScheduledRequest, count: int) -> None:
        self.tokens -= count * entry.branches
        self.scored -= count * entry.branches if entry.scored else 0
