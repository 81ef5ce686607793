"""The server's state as the page shows it, published to all tabs whenever it changes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from starlette.requests import HTTPConnection

from sordino.prompts.attention import OFFERED_HOLD
from sordino.server.bodies import json_with
from sordino.server.prompts import ServedPrompt, model_key
from sordino.server.serving import Serving, state_of

log = logging.getLogger("sordino.server")

_POLL_SECONDS = 0.4

Payload = dict[str, Any]


def page_state(connection: HTTPConnection) -> str:
    """What the status line and the choice of a soft prompt show, as JSON. Scans the library: not for the event loop."""
    # Before the state: a tab that learns that loading has ended must see its result.
    loading = connection.app.state.loader.status()
    state = state_of(connection)
    publisher: StatePublisher = connection.app.state.publisher
    head = {
        "is": "state",
        "model": _model(state) if isinstance(state, Serving) else None,
        **loading,
        "default": state.prompts.default,
        "left_out": state.prompts.left_out,
        "offered_hold": OFFERED_HOLD,
    }
    return json.dumps(head)[:-1] + ", " + publisher.library(state.prompts.all())[1:]


def _model(serving: Serving) -> Payload:
    return {
        "name": serving.model,
        "key": model_key(serving.base),
        "runner": serving.runner,
        "context": serving.context_length,
        "hold": serving.backend.capabilities.hold,
        "strengths": serving.backend.capabilities.strengths,
        "encoder_decoder": serving.base.encoder_decoder is not None,
        "chat": bool(getattr(serving.base.tokenizer, "chat_template", None)),
    }


def _summary(prompt: ServedPrompt) -> Payload:
    entry = prompt.entry
    return {
        "name": entry.name,
        "title": entry.metadata.name or entry.name,
        "tokens": entry.n_tokens,
        "kind": entry.kind,
        "components": entry.components,
        "fit": prompt.fit.kind if prompt.fit else None,
        # Of each component of a mixture, or of the one prompt.
        "attention": [asdict(part.metadata.attention) for part in entry.parts],
    }


def _table_row(prompt: ServedPrompt) -> tuple[object, ...]:
    """What the table of soft prompts and the sliders of mixtures show: the file, and how well it fits the model."""
    entry = prompt.entry
    return entry.name, entry.path, entry.revision, entry.error, prompt.fit


# Called with the JSON of the state.
Subscriber = Callable[[str], None]


class StatePublisher:
    """Polls the state once for all tabs, while there are any, and publishes what has changed."""

    def __init__(self) -> None:
        self._subscribers: set[Subscriber] = set()
        self._task: asyncio.Task[None] | None = None
        self._last: str | None = None
        self._library: tuple[tuple[ServedPrompt, ...] | None, str] = None, ""

    @property
    def tabs(self) -> int:
        return len(self._subscribers)

    def library(self, prompts: tuple[ServedPrompt, ...]) -> str:
        """What the state says of the library, as JSON; made anew only where that has changed."""
        known, text = self._library
        if known is not prompts:
            # The number changes with anything that the table of the library shows.
            more = {"count": len(prompts), "library": hash(tuple(_table_row(one) for one in prompts))}
            text = json_with(more, "prompts", (_summary(one) for one in prompts if one.usable))
            self._library = prompts, text
        return text

    @contextmanager
    def subscribed(self, subscriber: Subscriber, connection: HTTPConnection) -> Iterator[None]:
        """Within this block `subscriber` is called with the current state, and with each later one."""
        self._subscribers.add(subscriber)
        if self._last is not None:
            subscriber(self._last)
        if self._task is None:
            self._task = asyncio.create_task(self._poll(connection))
        try:
            yield
        finally:
            self._subscribers.discard(subscriber)
            if not self._subscribers and self._task is not None:
                self._task.cancel()
                self._task = self._last = None

    async def _poll(self, connection: HTTPConnection) -> None:
        while True:
            try:
                current = await asyncio.to_thread(page_state, connection)
            except Exception:
                # A bug, or a disk that fails. The tabs keep the last state until the next one can be read.
                log.exception("the state of the server cannot be read")
            else:
                if current != self._last:
                    self._last = current
                    for subscriber in list(self._subscribers):
                        subscriber(current)
            # How often the library is scanned meanwhile is its own rule (`ServedPrompts.all`).
            await asyncio.sleep(_POLL_SECONDS)
