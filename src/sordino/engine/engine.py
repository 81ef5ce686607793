"""The engine: requests in, events out. A step is schedule, run, postprocess.

Requests join and leave between steps. Every request that was submitted ends in exactly one `End`.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sordino.detokenise import Detokeniser
from sordino.engine.requests import Chunk, End, Event, Reason, Request
from sordino.engine.runner import Runner, Span
from sordino.engine.scheduler import Scheduler, Stretch, Work
from sordino.errors import ConfigError, EngineBusy, ModelError, OutOfMemory, SordinoError
from sordino.sampling import Drawn, sample

_OTHER_NUMBERS = "take another soft prompt, or a --dtype of larger range"
_log = logging.getLogger("sordino.engine")


@dataclass(frozen=True)
class Limits:
    """rows: most that run at once. queue: most that wait. tokens: most positions in a step. chunk: most that a row reads of it."""

    rows: int = 16
    queue: int = 256
    tokens: int = 512
    chunk: int = 256


@dataclass(frozen=True)
class Words:
    """What the engine needs of a tokenizer and a model: where a text ends, ids to text, positions, vocabulary."""

    decode: Callable[[Sequence[int]], str]
    stop_ids: frozenset[int]
    context_length: int
    vocab_size: int


@dataclass(eq=False)
class _Row:
    """A request on its way: what it has said."""

    request: Request
    work: Work
    width: int
    random: torch.Generator
    text: Detokeniser
    new_ids: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return [*self.request.ids, *self.new_ids]


class Engine:
    """Rows of one base model in one batch. Not for several threads: one thread submits, aborts and steps."""

    def __init__(self, runner: Runner, words: Words, limits: Limits = Limits()) -> None:
        self.runner, self.words, self.limits = runner, words, limits
        self._numbers = itertools.count()
        self._rows: dict[int, _Row] = {}
        self._scheduler = Scheduler(limits.rows, limits.tokens, limits.chunk)
        # Events that came between steps.
        self._ended: list[tuple[int, End]] = []
        self._closed = False

    def submit(self, request: Request) -> int:
        """The request's number; its events come from `step`.

        Raises EngineBusy where the queue is full, and ConfigError, DoesNotFit or OutOfMemory for what can never run.
        """
        if self._closed:
            raise EngineBusy("the engine was closed")
        width = self.check([request])
        number = next(self._numbers)
        work = Work(number, request.client, len(request.ids))
        random = torch.Generator().manual_seed(request.seed)
        text = Detokeniser(self.words.decode, request.ids, request.sampling.stop)
        self._rows[number] = _Row(request, work, width, random, text)
        self._scheduler.waiting.add(work)
        return number

    def check(self, requests: Sequence[Request]) -> int:
        """Raises what `submit` would raise for one of these, all of them together; the positions in front of the last one's text.

        May be asked from any thread: what it says of the queue may be over a moment later.
        """
        room = self.limits.queue + self.limits.rows - len(self._rows)
        if len(requests) > room:
            raise EngineBusy("the queue is full", expected=f"at most {self.limits.queue} waiting", do="try again later")
        width = 0
        for request in requests:
            width = self.runner.prefix_length(request.prompt)
            self._check(request, width)
        return width

    def abort(self, number: int) -> None:
        """End a request now, if it is not over; its event comes with the next step."""
        if number in self._rows:
            self._ended.append((number, self._end(self._rows[number], "aborted")))

    def close(self) -> list[tuple[int, Event]]:
        """End every request; nothing may be submitted afterwards."""
        for number in list(self._rows):
            self.abort(number)
        self._closed = True
        ended, self._ended = self._ended, []
        return list(ended)

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._rows or self._ended)

    @property
    def counts(self) -> tuple[int, int]:
        """(rows that run, requests that wait)."""
        return len(self._scheduler.running), len(self._scheduler.waiting)

    def step(self) -> list[tuple[int, Event]]:
        """One step of every row that has its turn: the events, in the order of the rows."""
        events: list[tuple[int, Event]] = []
        self._prepare()
        stretches = self._scheduler.schedule(self._admit, self._grow, self._let_go)
        try:
            logits = self.runner.run([self._span(stretch) for stretch in stretches]) if stretches else None
        except SordinoError as error:
            # Nobody knows how far it came: every row of the step ends, and the others go on.
            failed = [self._rows[stretch.work.number] for stretch in stretches]
            events += [(row.work.number, self._end(row, "failed", error)) for row in failed]
            logits, stretches = None, []
        events += self._ended
        self._ended = []
        at = 0
        for stretch in stretches:
            stretch.work.done += stretch.count
            if stretch.work.done < stretch.work.length:
                continue
            assert logits is not None
            row = self._rows[stretch.work.number]
            events += [(stretch.work.number, event) for event in self._written(row, logits[at])]
            at += 1
        return events

    def _written(self, row: _Row, logits_V: Tensor) -> list[Event]:
        """Draw a row's next token. What fails there ends this row and no other."""
        # One pass: a sum is a number where all its parts are. Words that cannot come are at minus infinity.
        # In numpy: PyTorch would wake its threads, which then stand in the way of whoever runs the model.
        if not float(logits_V.numpy().sum()) < math.inf:
            return [self._end(row, "failed", ModelError("the model's answer is not a number", do=_OTHER_NUMBERS))]
        try:
            drawn = sample(logits_V, row.ids, row.request.sampling, row.random, n_new=len(row.new_ids))
        except Exception as error:
            _log.exception("drawing a token failed")
            return [self._end(row, "failed", SordinoError("drawing a token failed", got=type(error).__name__))]
        return self._advance(row, drawn)

    def _prepare(self) -> None:
        """Soft prompts of those who come next are run side by side: one by one costs as much for each as for several."""
        room = self.limits.rows - len(self._scheduler.running)
        coming = [self._rows[work.number].request.prompt for work in self._scheduler.waiting.ahead(room)]
        # One alone is run when its row is opened, and what fails there fails that row and no other.
        if len(coming) > 1:
            with suppress(SordinoError):
                self.runner.prepare(coming)

    def _admit(self, work: Work) -> bool:
        row = self._rows[work.number]
        try:
            done = self.runner.open(work.number, row.request.prompt, row.ids)
        except SordinoError as error:
            self._ended.append((work.number, self._end(row, "failed", error)))
            return False
        if done is None:
            return False
        work.done = done
        return True

    def _grow(self, work: Work, count: int) -> bool:
        return self.runner.grow(work.number, count)

    def _let_go(self, work: Work) -> None:
        self.runner.close(work.number, self._rows[work.number].ids)
        work.done = 0

    def _span(self, stretch: Stretch) -> Span:
        work = stretch.work
        end = work.done + stretch.count
        return Span(work.number, self._rows[work.number].ids[work.done : end], end >= work.length)

    def _advance(self, row: _Row, drawn: Drawn) -> list[Event]:
        """Take the drawn token into the row: its chunk, and its end where this was the last."""
        if drawn.token in self.words.stop_ids:
            rest = row.text.finish()
            return [*([Chunk(rest, ())] if rest else []), self._end(row, "stop")]
        row.new_ids.append(drawn.token)
        row.work.length += 1
        text = row.text.push(drawn.token)
        if row.text.stopped:
            return [Chunk(text, (drawn,)), self._end(row, "stop")]
        if len(row.new_ids) >= row.request.sampling.max_tokens:
            return [Chunk(text + row.text.finish(), (drawn,)), self._end(row, "length")]
        return [Chunk(text, (drawn,))]

    def _end(self, row: _Row, reason: Reason, error: SordinoError | None = None) -> End:
        """Take the row out, wherever it is."""
        del self._rows[row.work.number]
        if row.work in self._scheduler.running:
            self._scheduler.running.remove(row.work)
            self.runner.close(row.work.number, row.ids if reason != "failed" else ())
        else:
            self._scheduler.waiting.remove(row.work)
        return End(reason, row.width + len(row.request.ids), len(row.new_ids), error)

    def _check(self, request: Request, width: int) -> None:
        length = width + len(request.ids) + request.sampling.max_tokens
        if width + len(request.ids) == 0:
            raise ConfigError("there is nothing to continue", where="prompt", do="give a text or a soft prompt")
        if length > self.words.context_length:
            raise ConfigError(
                "the text and its continuation do not fit the model's context",
                where="prompt",
                expected=f"at most {self.words.context_length} positions",
                got=f"{width} in front + {len(request.ids)} text + {request.sampling.max_tokens} new",
                do="shorten the text or ask for less",
            )
        if length > self.runner.most_positions:
            raise OutOfMemory(
                "the request does not fit into the memory for running rows",
                expected=f"at most {self.runner.most_positions} positions",
                got=length,
                do="shorten the text, ask for less, or give --kv-memory",
            )
        for word, _ in request.sampling.logit_bias:
            if not 0 <= word < self.words.vocab_size:
                raise ConfigError(
                    "no such word", where="logit_bias", expected=f"0 to {self.words.vocab_size - 1}", got=word
                )
