"""A running server's parts, made from a base model, its backend and a library, and taken apart again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import platformdirs

from sordino.engine.backend import Backend
from sordino.library.library import Library
from sordino.models.bundled import BUNDLED
from sordino.models.description import DescribedModel
from sordino.server.metrics import Metrics
from sordino.server.prompts import Voices
from sordino.server.serving import ServerLimits, Serving


@contextmanager
def opened(
    model: DescribedModel,
    backend: Backend,
    library: Library,
    *,
    remembered: Path | None = None,
    limits: ServerLimits | None = None,
    metrics: Metrics | None = None,
) -> Iterator[Serving]:
    """Everything but the HTTP. remembered: the file with each model's default soft prompt. metrics: to go on counting in."""
    metrics = metrics or Metrics()
    metrics.watch(backend.counts, backend.cache_use)
    place = platformdirs.user_config_path("sordino") / "defaults.json" if remembered is None else remembered
    backend.start()
    try:
        yield Serving(
            model.name if model.name in BUNDLED else model.id,
            model,
            backend,
            Voices(model, library, place, rows=backend.capabilities.branches),
            metrics,
            limits or ServerLimits(),
            int(time.time()),
        )
    finally:
        # The backend's memory may be given back after this: it must have ended, however long its last step takes.
        backend.stop(finish=False)
        metrics.forget(backend.counts)


class Models:
    """The model that is served, and how another takes its place: the new one is opened, the old one finishes what it has.

    open_: a model by name. others: the names that may take its place besides the bundled ones; anybody who may write may ask.
    serving: what is served; None while nothing is.
    """

    def __init__(self, open_: Callable[[str], AbstractContextManager[Serving]], others: Collection[str] = ()) -> None:
        self._open, self._others = open_, set(others)
        self._lock = threading.Lock()
        self._leaving: list[Serving] = []
        self._stack = ExitStack()
        self.serving: Serving | None = None

    def first(self, name: str) -> Serving:
        """What is served at the start."""
        serving = self.serving = self._stack.enter_context(self._open(name))
        # What was good at the start may come back.
        self._others.add(name)
        return serving

    def may_change_to(self, name: str) -> bool:
        return name in self._others or name in BUNDLED

    def change(
        self, name: str, announce: Callable[[Serving], None], *, still_wanted: Callable[[], bool] = lambda: True
    ) -> None:
        """Serve another model. Requests of the old one run to their ends. An error leaves everything as it was.

        announce: is told of the new one before the old one takes no more. still_wanted: is asked when the new one is there;
        where it is not, everything stays as it was.
        """
        with self._lock:
            stack = ExitStack()
            new = stack.enter_context(self._open(name))
            if not still_wanted():
                stack.close()
                return
            old, old_stack = self.serving, self._stack
            self.serving, self._stack = new, stack
            announce(new)
        self._let_go(old, old_stack)

    def unload(self, announce: Callable[[], None]) -> None:
        """Serve none. announce: is told before the old one takes no more; its requests run to their ends."""
        with self._lock:
            old, old_stack = self.serving, self._stack
            self.serving, self._stack = None, ExitStack()
            announce()
        self._let_go(old, old_stack)

    def _let_go(self, old: Serving | None, stack: ExitStack) -> None:
        if old is None:
            return
        self._leaving.append(old)
        old.backend.stop(finish=True)
        self._leaving.remove(old)
        stack.close()

    def stop_now(self) -> None:
        """End all requests, those of a model that is leaving too. May be called from a signal's handler."""
        for serving in (self.serving, *self._leaving):
            if serving is not None:
                serving.backend.stop(finish=False, seconds=0)

    def close(self) -> None:
        """Give everything back."""
        with self._lock:
            self._stack.close()
