"""The engine: requests in, events out. A step is schedule, run, postprocess.

Requests join and leave between steps. Every request that was submitted ends in exactly one `End`. A request with a mixture runs in
one branch for each component: rows of the runner that are opened, run and closed together.

Shape key: N rows whose logits are wanted, K branches of a request, V vocabulary.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.engine.active_request import ActiveRequest
from sordino.engine.branches import Branches
from sordino.engine.config import Limits
from sordino.engine.detokenizer import Detokenizer
from sordino.engine.requests import Chunk, End, Event, Reason, Request, check_room, check_token_ids, widths
from sordino.engine.runners.runner import Runner, Span
from sordino.engine.samplers import TokenInfo
from sordino.engine.sampling import Drawn, sample
from sordino.engine.scheduler import ScheduledRequest, ScheduledTokens, Scheduler
from sordino.engine.seen_tokens import SeenTokens
from sordino.engine.text_scores import TextScores, check_scored
from sordino.errors import EngineBusy, ModelError, OutOfMemory, SordinoError
from sordino.prompts.mixture import check_branches, components_of

# The logits of texts that are scored, in a step.
_SCORED_BYTES = 64 << 20
_log = logging.getLogger("sordino.engine")


class Engine:
    """Requests to one base model in one batch. Not thread-safe: one thread submits, aborts and steps."""

    def __init__(self, runner: Runner, limits: Limits | None = None) -> None:
        self.runner, self.model, self.limits = runner, runner.model, limits or Limits()
        self._vocabulary = TokenInfo(self.model.stop_ids, lru_cache(1 << 16)(lambda token: self.model.decode([token])))
        self._numbers = itertools.count()
        self._active: dict[int, ActiveRequest] = {}
        scored = max(self.limits.branches, _SCORED_BYTES // (4 * self.model.vocab_size))
        self._scheduler = Scheduler(self.limits.rows, self.limits.tokens, self.limits.chunk, scored)
        # Events that came between steps.
        self._ended: list[tuple[int, End]] = []
        # Branches to close, each with its ids: caching their texts can wait until their ends are published.
        self._to_close: list[tuple[Branches, Sequence[int]]] = []
        # How often branches were closed so far; and the number of the mixture that last found no room, with that count at the time.
        self._closings = 0
        self._no_room = (-1, 0)
        self._closed = False

    def submit(self, request: Request) -> int:
        """The request's number; its events come from `step`.

        Raises EngineBusy where the queue is full, and ConfigError, DoesNotFit or OutOfMemory for what can never run.
        """
        if self._closed:
            raise EngineBusy("the engine was closed")
        width = self.check([request])
        branches = Branches.of(request, self._numbers)
        scored = request.scoring is not None
        entry = ScheduledRequest(
            branches.number, request.client, len(request.ids), branches=len(branches), scored=scored
        )
        random = torch.Generator().manual_seed(request.seed)
        two_sided = self.model.encoder_decoder is not None
        text = Detokenizer(self.model.decode, () if two_sided else request.ids, request.sampling.stop)
        # For a mixture, what its first component reads counts; of an encoder-decoder, what it writes.
        skip = len(request.ids) if two_sided else (*request.skips, 0)[0]
        seen = SeenTokens(request.ids, request.sampling.repetition_range, skip=skip)
        scores = TextScores(request, request.scoring, branches) if request.scoring else None
        grammar = request.grammar.begin() if request.grammar else None
        self._active[entry.number] = ActiveRequest(request, entry, width, branches, random, text, seen, scores, grammar)
        self._scheduler.waiting.add(entry)
        return entry.number

    def check(self, requests: Sequence[Request]) -> int:
        """Raise what `submit` would raise for one of these, all together; returns the positions ahead of the last one's text.

        Any thread may call it. The queue may have changed a moment later.
        """
        room = self.limits.queue + self.limits.rows - len(self._active)
        if len(requests) > room:
            raise EngineBusy("the queue is full", expected=f"at most {self.limits.queue} waiting", do="try again later")
        return [self._check(request) for request in requests][-1] if requests else 0

    def abort(self, number: int) -> None:
        """End a request now, unless it is over; its event comes with the next step."""
        if number in self._active:
            self._ended.append((number, self._end(self._active[number], "aborted")))
            self._close_ended()

    def close(self) -> list[tuple[int, Event]]:
        """End every request; nothing may be submitted afterwards."""
        for number in list(self._active):
            self.abort(number)
        self._close_ended()
        self._closed = True
        ended, self._ended = self._ended, []
        return list(ended)

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._active or self._ended or self._to_close)

    @property
    def counts(self) -> tuple[int, int]:
        """(rows that run, requests that wait)."""
        return self._scheduler.taken, len(self._scheduler.waiting)

    def step(self) -> list[tuple[int, Event]]:
        """One step of every request that has its turn: the events, in the order of the requests."""
        events: list[tuple[int, Event]] = []
        self._close_ended()
        self._prepare()
        batch = self._scheduler.schedule(self._admit, self._grow, self._preempt)
        try:
            spans = [span for item in batch for span in self._spans(item)]
            # Arrays, not tensors: with llama.cpp a few calls of PyTorch took a fifth of our share of a step (LOG.md), and they may
            # wake its threads, which then compete with those that run the model.
            logits_NV = np.asarray(self.runner.run(spans)) if spans else None
        except SordinoError as error:
            # How far the runner came is unknown: every request of the step ends, and the others go on.
            failed = [self._active[item.entry.number] for item in batch]
            events += [(one.entry.number, self._end(one, "failed", error)) for one in failed]
            logits_NV, batch = None, []
        events += self._ended
        self._ended = []
        first = 0
        for item in batch:
            active = self._active[item.entry.number]
            wanted = active.wanted(item.count)
            item.entry.done += item.count
            active.branches.ran(item.entry.done)
            if not wanted:
                continue
            assert logits_NV is not None
            end = first + wanted * len(active.branches)
            logits_KTV = logits_NV[first:end].reshape(len(active.branches), wanted, -1)
            first = end
            events += [(item.entry.number, event) for event in self._read(active, logits_KTV)]
        return events

    def _read(self, active: ActiveRequest, logits_KTV: NDArray[np.float32]) -> list[Event]:
        """Score a request's text, and draw its next token where that is at its end. An error ends this request and no other."""
        try:
            scored: list[Event] = []
            if active.scores is not None:
                found, only = active.scores.read(logits_KTV), active.scores.scoring.only
                if found is None:
                    return []
                scored = [Chunk("", (), found)]
                if only:
                    return [*scored, self._end(active, "length")]
                active.scores, active.entry.scored = None, False
            logits_V, logp_KV = active.branches.combined(logits_KTV[:, -1])
            allowed_V = active.grammar.allowed() if active.grammar else None
            drawn = sample(logits_V, active.seen, active.request.sampling, active.random, self._vocabulary, allowed_V)
            if active.grammar:
                active.grammar.push(drawn.token)
        except ModelError as error:
            return [self._end(active, "failed", error)]
        except Exception as error:
            _log.exception("drawing a token failed")
            return [self._end(active, "failed", SordinoError("drawing a token failed", got=type(error).__name__))]
        active.branches.observe(drawn.token, logp_KV)
        return [*scored, *self._advance(active, drawn)]

    def _prepare(self) -> None:
        """Encode the soft prompts of the requests that come next in one batch."""
        if not self._scheduler.waiting:
            return
        room = self.limits.rows - self._scheduler.taken
        waiting = [self._active[entry.number] for entry in self._scheduler.waiting.ahead(room)]
        coming = [branch.prompt for active in waiting for branch in active.branches.members][: self.limits.rows]
        # A single one is encoded when its branch opens, where an error ends its request and no other.
        if len(coming) > 1:
            with suppress(SordinoError):
                self.runner.prepare(coming)

    def _admit(self, entry: ScheduledRequest) -> bool:
        # Branches open one by one. Without room for all, that is not repeated at every step: closing rows makes room.
        if self._no_room == (entry.number, self._closings):
            return False
        active = self._active[entry.number]
        try:
            done = (
                active.scores.open(self.runner)
                if active.scores
                else active.branches.open(self.runner, active.ids, active.n_new)
            )
        except SordinoError as error:
            self._ended.append((entry.number, self._end(active, "failed", error)))
            return False
        if done is None:
            self._no_room = (entry.number, self._closings) if entry.branches > 1 or active.scores else self._no_room
            return False
        entry.done = done
        return True

    def _grow(self, entry: ScheduledRequest, count: int) -> bool:
        return self._active[entry.number].branches.grow(self.runner, entry.done + count)

    def _preempt(self, entry: ScheduledRequest) -> None:
        active = self._active[entry.number]
        self._closings += 1
        active.branches.close(self.runner, active.ids)
        entry.done = 0

    def _spans(self, item: ScheduledTokens) -> list[Span]:
        active, end = self._active[item.entry.number], item.entry.done + item.count
        return active.branches.spans(active.ids, end, active.wanted(item.count))

    def _advance(self, active: ActiveRequest, drawn: Drawn) -> list[Event]:
        """Append the drawn token: its chunk, and the end where it is the last."""
        if drawn.token in self.model.stop_ids and active.request.sampling.end != "ignore":
            rest = active.text.finish()
            end = replace(self._end(active, "stop"), ended_by=drawn)
            return [*([Chunk(rest, ())] if rest else []), end]
        active.seen.push(drawn.token)
        active.entry.length += 1
        text = active.text.push(drawn.token)
        if active.text.stopped:
            return [Chunk(text, (drawn,)), self._end(active, "stop")]
        if active.grammar is not None and active.grammar.over:
            return [Chunk(text + active.text.finish(), (drawn,)), self._end(active, "stop")]
        if active.n_new >= active.request.sampling.max_tokens:
            return [Chunk(text + active.text.finish(), (drawn,)), self._end(active, "length")]
        return [Chunk(text, (drawn,))]

    def _end(self, active: ActiveRequest, reason: Reason, error: SordinoError | None = None) -> End:
        """Remove a request, whether it waits or runs."""
        del self._active[active.entry.number]
        if active.entry in self._scheduler.running:
            self._scheduler.running.remove(active.entry)
            self._to_close.append((active.branches, active.ids if reason != "failed" else ()))
        else:
            self._scheduler.waiting.remove(active.entry)
        return End(reason, active.width + len(active.request.ids), active.n_new, error)

    def _close_ended(self) -> None:
        while self._to_close:
            self._closings += 1
            branches, ids = self._to_close.pop(0)
            branches.close(self.runner, ids)

    def _check(self, request: Request) -> int:
        """The positions ahead of a request's text; for a mixture those of its longest component."""
        check_branches(request.prompt, self.limits.branches)
        check_scored(request)
        in_front = widths(request, self.model)
        check_room(request, in_front, self.model.context_length, sides=self.model.encoder_decoder)
        lengths = [width + len(request.ids) + request.most_new for width in in_front]
        if not self.runner.holds(list(zip(components_of(request.prompt), lengths, strict=True))):
            raise OutOfMemory(
                "the request does not fit into the memory for running rows",
                expected=f"at most {self.runner.most_positions} positions",
                got=lengths[0] if len(lengths) == 1 else f"{len(lengths)} rows of {max(lengths)}, one a component",
                do="shorten the text, ask for less, or give --kv-memory",
            )
        check_token_ids(request.sampling, self.model.vocab_size)
        return max(in_front)
