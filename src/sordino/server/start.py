"""What a server serves: opened from a base model, a backend and a library; changed for another; closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import platformdirs

from sordino.engine.backend import Backend, check_prompt
from sordino.engine.config import EngineOptions
from sordino.engine.grammar import Grammars
from sordino.library.library import Library
from sordino.models.bundled import BUNDLED
from sordino.models.description import DescribedModel
from sordino.server.memory import leave_out_of_collections
from sordino.server.metrics import ServerMetrics
from sordino.server.prompts import ServedPrompts
from sordino.server.serving import ServerLimits, Serving


@contextmanager
def opened(
    model: DescribedModel,
    backend: Backend,
    library: Library,
    *,
    defaults: Path | None = None,
    limits: ServerLimits | None = None,
    metrics: ServerMetrics | None = None,
) -> Iterator[Serving]:
    """Everything but HTTP. defaults: the file with each model's default soft prompt. metrics: counters to continue."""
    metrics = metrics or ServerMetrics()
    metrics.watch(backend.counts, backend.cache_use)
    defaults = defaults or platformdirs.user_config_path("sordino") / "defaults.json"
    prompts = ServedPrompts(model, library, defaults, check=partial(check_prompt, backend.name, backend.capabilities))
    backend.start()
    try:
        prompts.check_default()
        yield Serving(
            model.name if model.name in BUNDLED else model.id,
            model,
            backend,
            prompts,
            metrics,
            limits or ServerLimits(),
            int(time.time()),
            Grammars(model),
        )
    finally:
        # Its memory is freed after this, so the backend must have ended, however long its last step takes.
        backend.stop(finish=False)
        metrics.forget(backend.counts)


@dataclass(frozen=True)
class Opener:
    """Opens models by name. run: a model and its backend. options: what `run` was made with, for the page."""

    run: Callable[[str], AbstractContextManager[tuple[DescribedModel, Backend]]]
    library: Library
    options: EngineOptions
    metrics: ServerMetrics = field(default_factory=ServerMetrics)

    @contextmanager
    def open(self, name: str) -> Iterator[Serving]:
        """Raises as `run`."""
        with (
            self.run(name) as (base, backend),
            opened(base, backend, self.library, metrics=self.metrics) as serving,
        ):
            yield serving


class Models:
    """The model that is served. To change it, the new one is opened, then the old one finishes its requests and is closed.

    open_: opens a model by name. others: names that clients may change to besides the bundled ones.
    serving: what is served; None while no model is loaded.
    """

    def __init__(self, open_: Callable[[str], AbstractContextManager[Serving]], others: Collection[str] = ()) -> None:
        self._open, self._others = open_, set(others)
        self._lock = threading.Lock()
        self._draining: list[Serving] = []
        self._stack = ExitStack()
        self.serving: Serving | None = None

    def first(self, name: str) -> Serving:
        """Open the first model."""
        serving = self.serving = self._stack.enter_context(self._open(name))
        # Clients may change back to it.
        self._others.add(name)
        return serving

    def may_change_to(self, name: str) -> bool:
        return name in self._others or name in BUNDLED

    def change(
        self, name: str, announce: Callable[[Serving], None], *, still_wanted: Callable[[], bool] = lambda: True
    ) -> None:
        """Serve another model. Requests of the old one run to their ends. After an error the old one is served as before.

        announce: called with the new one, before the old one refuses requests. still_wanted: called when the new one is open;
        where it returns False, the old one is served as before.
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
        self._close(old, old_stack)

    def unload(self, announce: Callable[[], None]) -> None:
        """Serve no model. announce: called before the old one refuses requests, which run to their ends."""
        with self._lock:
            old, old_stack = self.serving, self._stack
            self.serving, self._stack = None, ExitStack()
            announce()
        self._close(old, old_stack)

    def _close(self, old: Serving | None, stack: ExitStack) -> None:
        if old is None:
            return
        self._draining.append(old)
        old.backend.stop(finish=True)
        self._draining.remove(old)
        stack.close()
        leave_out_of_collections()

    def stop_now(self) -> None:
        """End all requests, also those of a model that drains. May be called from a signal handler."""
        for serving in (self.serving, *self._draining):
            if serving is not None:
                serving.backend.stop(finish=False, seconds=0)

    def close(self) -> None:
        """Close the model."""
        with self._lock:
            self._stack.close()
