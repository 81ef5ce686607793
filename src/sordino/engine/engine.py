"""The engine: requests in, events out. A step is schedule, run, postprocess.

Requests join and leave between steps. Every request that was submitted ends in exactly one `End`. A request behind a mixture
runs in a branch a component (`lanes`): rows of the runner that are opened, run and closed together.

Shape key: K branches of a request, V vocabulary.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sordino.engine.branches import (
    Branch,
    close_branches,
    combined_logits,
    initial_weights,
    open_branches,
    weights_after,
)
from sordino.engine.detokenizer import Detokeniser
from sordino.engine.requests import Chunk, End, Event, Reason, Request, check_room, widths
from sordino.engine.runners.runner import Runner, Span
from sordino.engine.sampling import Drawn, sample
from sordino.engine.scheduler import ScheduledRequest, ScheduledTokens, Scheduler
from sordino.engine.seen_tokens import SeenTokens
from sordino.errors import ConfigError, EngineBusy, ModelError, OutOfMemory, SordinoError
from sordino.prompts.mixture import Mixture, check_branches, components_of

_log = logging.getLogger("sordino.engine")


@dataclass(frozen=True)
class Limits:
    """rows: most that run at once. queue: most that wait. tokens: most positions in a step. chunk: most that a row reads of it."""

    rows: int = 16
    queue: int = 256
    tokens: int = 512
    chunk: int = 256

    @property
    def branches(self) -> int:
        """Most that a request may have: all run in one step."""
        return min(self.rows, self.tokens)


@dataclass(frozen=True)
class TokenizerInfo:
    """What the engine needs of a tokenizer and a model: where a text ends, ids to text, positions, vocabulary."""

    decode: Callable[[Sequence[int]], str]
    stop_ids: frozenset[int]
    context_length: int
    vocab_size: int


@dataclass(eq=False)
class _ActiveRequest:
    """A request on its way. seen: its own ids and the drawn ones. log_weights_K: of a mixture, as they are now; None until its
    gate has read."""

    request: Request
    entry: ScheduledRequest
    width: int
    branches: tuple[Branch, ...]
    log_weights_K: Tensor | None
    random: torch.Generator
    text: Detokeniser
    seen: SeenTokens

    @property
    def ids(self) -> list[int]:
        return self.seen.ids

    @property
    def n_new(self) -> int:
        return len(self.ids) - len(self.request.ids)


class Engine:
    """Rows of one base model in one batch. Not for several threads: one thread submits, aborts and steps."""

    def __init__(self, runner: Runner, info: TokenizerInfo, limits: Limits = Limits()) -> None:
        self.runner, self.info, self.limits = runner, info, limits
        self._numbers = itertools.count()
        self._rows: dict[int, _ActiveRequest] = {}
        self._scheduler = Scheduler(limits.rows, limits.tokens, limits.chunk)
        # Events that came between steps.
        self._ended: list[tuple[int, End]] = []
        self._closed = False
        # Rows that were closed so far; and of the mixture that found no room for all its branches, its number and when that was.
        self._closings = 0
        # Rows that are over and still hold memory: keeping their texts can wait until their ends are published.
        self._ended_rows: list[tuple[Sequence[Branch], Sequence[int]]] = []
        self._no_room = (-1, 0)

    def submit(self, request: Request) -> int:
        """The request's number; its events come from `step`.

        Raises EngineBusy where the queue is full, and ConfigError, DoesNotFit or OutOfMemory for what can never run.
        """
        if self._closed:
            raise EngineBusy("the engine was closed")
        width = self.check([request])
        number = next(self._numbers)
        branches = tuple(
            Branch(number if index == 0 else next(self._numbers), prompt, request.skips[index] if request.skips else 0)
            for index, prompt in enumerate(components_of(request.prompt))
        )
        entry = ScheduledRequest(number, request.client, len(request.ids), branches=len(branches))
        random = torch.Generator().manual_seed(request.seed)
        text = Detokeniser(self.info.decode, request.ids, request.sampling.stop)
        # A mixture goes by what its first component reads.
        seen = SeenTokens(request.ids, request.sampling.repetition_range, skip=(*request.skips, 0)[0])
        self._rows[number] = _ActiveRequest(
            request, entry, width, branches, initial_weights(request.prompt), random, text, seen
        )
        self._scheduler.waiting.add(entry)
        return number

    def check(self, requests: Sequence[Request]) -> int:
        """Raises what `submit` would raise for one of these, all of them together; the positions in front of the last one's text.

        May be asked from any thread: what it says of the queue may be over a moment later.
        """
        room = self.limits.queue + self.limits.rows - len(self._rows)
        if len(requests) > room:
            raise EngineBusy("the queue is full", expected=f"at most {self.limits.queue} waiting", do="try again later")
        return [self._check(request) for request in requests][-1] if requests else 0

    def abort(self, number: int) -> None:
        """End a request now, if it is not over; its event comes with the next step."""
        if number in self._rows:
            self._ended.append((number, self._end(self._rows[number], "aborted")))
            self._close_ended()

    def close(self) -> list[tuple[int, Event]]:
        """End every request; nothing may be submitted afterwards."""
        for number in list(self._rows):
            self.abort(number)
        self._close_ended()
        self._closed = True
        ended, self._ended = self._ended, []
        return list(ended)

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._rows or self._ended or self._ended_rows)

    @property
    def counts(self) -> tuple[int, int]:
        """(rows that run, requests that wait)."""
        return self._scheduler.taken, len(self._scheduler.waiting)

    def step(self) -> list[tuple[int, Event]]:
        """One step of every row that has its turn: the events, in the order of the rows."""
        events: list[tuple[int, Event]] = []
        self._close_ended()
        self._prepare()
        batch = self._scheduler.schedule(self._admit, self._grow, self._preempt)
        try:
            spans = [span for item in batch for span in self._spans(item)]
            # Arrays, not tensors: beside llama.cpp a few calls of PyTorch were a fifth of our own time of a step (LOG.md), and its
            # threads may be woken, which then stand in the way of whoever runs the model.
            logits_NV = np.asarray(self.runner.run(spans)) if spans else None
        except SordinoError as error:
            # Nobody knows how far it came: every row of the step ends, and the others go on.
            failed = [self._rows[item.entry.number] for item in batch]
            events += [(row.entry.number, self._end(row, "failed", error)) for row in failed]
            logits_NV, batch = None, []
        events += self._ended
        self._ended = []
        at = 0
        for item in batch:
            entry, row = item.entry, self._rows[item.entry.number]
            entry.done += item.count
            for branch in row.branches:
                branch.done = max(branch.done, entry.done)
            if entry.done < entry.length:
                continue
            assert logits_NV is not None
            events += [(entry.number, event) for event in self._written(row, logits_NV[at : at + entry.branches])]
            at += entry.branches
        return events

    def _written(self, row: _ActiveRequest, logits_KV: NDArray[np.float32]) -> list[Event]:
        """Draw a row's next token. What fails there ends this row and no other."""
        try:
            logits_V, logp_KV = combined_logits(row.request.prompt, logits_KV, row.log_weights_K)
            drawn = sample(logits_V, row.seen, row.request.sampling, row.random)
        except ModelError as error:
            return [self._end(row, "failed", error)]
        except Exception as error:
            _log.exception("drawing a token failed")
            return [self._end(row, "failed", SordinoError("drawing a token failed", got=type(error).__name__))]
        if logp_KV is not None and row.log_weights_K is not None and not row.request.token_mixture:
            row.log_weights_K = weights_after(row.request.prompt, row.log_weights_K, logp_KV[:, drawn.token])
        return self._advance(row, drawn)

    def _prepare(self) -> None:
        """Soft prompts of those who come next are run side by side: one by one costs as much for each as for several."""
        if not self._scheduler.waiting:
            return
        room = self.limits.rows - self._scheduler.taken
        waiting = [self._rows[entry.number] for entry in self._scheduler.waiting.ahead(room)]
        coming = [branch.prompt for row in waiting for branch in row.branches][: self.limits.rows]
        # One alone is run when its row is opened, and what fails there fails that row and no other.
        if len(coming) > 1:
            with suppress(SordinoError):
                self.runner.prepare(coming)

    def _admit(self, entry: ScheduledRequest) -> bool:
        row = self._rows[entry.number]
        # Lanes are opened one by one, which is not done again at every step in vain: room comes when rows are closed.
        if self._no_room == (entry.number, self._closings):
            return False
        try:
            self._ask_gate(row)
            there = open_branches(self.runner, row.branches, row.ids)
        except SordinoError as error:
            self._ended.append((entry.number, self._end(row, "failed", error)))
            return False
        if not there:
            self._no_room = (entry.number, self._closings) if entry.branches > 1 else self._no_room
            return False
        entry.done = min(branch.done for branch in row.branches)
        return True

    def _ask_gate(self, row: _ActiveRequest) -> None:
        """The weights that a mixture's gate gives for the request's own text, once."""
        mixture = row.request.prompt
        if row.log_weights_K is None and isinstance(mixture, Mixture) and mixture.gate is not None:
            hidden_D = self.runner.hidden_of(row.request.ids)
            row.log_weights_K = torch.from_numpy(mixture.weights_for(hidden_D).copy()).log()

    def _grow(self, entry: ScheduledRequest, count: int) -> bool:
        end = entry.done + count
        branches = self._rows[entry.number].branches
        return all(self.runner.grow(branch.number, end - branch.done) for branch in branches if end > branch.done)

    def _preempt(self, entry: ScheduledRequest) -> None:
        row = self._rows[entry.number]
        self._closings += 1
        close_branches(self.runner, row.branches, row.ids)
        entry.done = 0

    def _spans(self, item: ScheduledTokens) -> list[Span]:
        """What each branch has still to run: one that found more of its text kept is ahead of the others."""
        row, end = self._rows[item.entry.number], item.entry.done + item.count
        ids, wanted = row.ids, end >= item.entry.length
        return [
            Span(branch.number, ids[branch.done : end], wanted)
            for branch in row.branches
            if wanted or branch.done < end
        ]

    def _advance(self, row: _ActiveRequest, drawn: Drawn) -> list[Event]:
        """Take the drawn token into the row: its chunk, and its end where this was the last."""
        if drawn.token in self.info.stop_ids:
            rest = row.text.finish()
            return [*([Chunk(rest, ())] if rest else []), self._end(row, "stop")]
        row.seen.push(drawn.token)
        row.entry.length += 1
        text = row.text.push(drawn.token)
        if row.text.stopped:
            return [Chunk(text, (drawn,)), self._end(row, "stop")]
        if row.n_new >= row.request.sampling.max_tokens:
            return [Chunk(text + row.text.finish(), (drawn,)), self._end(row, "length")]
        return [Chunk(text, (drawn,))]

    def _end(self, row: _ActiveRequest, reason: Reason, error: SordinoError | None = None) -> End:
        """Take the row out, wherever it is."""
        del self._rows[row.entry.number]
        if row.entry in self._scheduler.running:
            self._scheduler.running.remove(row.entry)
            self._ended_rows.append((row.branches, row.ids if reason != "failed" else ()))
        else:
            self._scheduler.waiting.remove(row.entry)
        return End(reason, row.width + len(row.request.ids), row.n_new, error)

    def _close_ended(self) -> None:
        while self._ended_rows:
            self._closings += 1
            close_branches(self.runner, *self._ended_rows.pop(0))

    def _check(self, request: Request) -> int:
        """The positions in front of a request's text, of a mixture's those in front of its longest component's."""
        check_branches(request.prompt, self.limits.branches)
        in_front = widths(request, self.runner.prefix_length)
        check_room(request, in_front, self.info.context_length)
        lengths = [width + len(request.ids) + request.sampling.max_tokens for width in in_front]
        if not self.runner.holds(lengths):
            raise OutOfMemory(
                "the request does not fit into the memory for running rows",
                expected=f"at most {self.runner.most_positions} positions",
                got=lengths[0] if len(lengths) == 1 else f"{len(lengths)} rows of {max(lengths)}, one a component",
                do="shorten the text, ask for less, or give --kv-memory",
            )
        for word, _ in request.sampling.logit_bias:
            if not 0 <= word < self.info.vocab_size:
                raise ConfigError(
                    "no such word", where="logit_bias", expected=f"0 to {self.info.vocab_size - 1}", got=word
                )
        return max(in_front)
