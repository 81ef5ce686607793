"""A running server's parts, made from a base model and a library, and taken apart again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
import psutil
import torch

from sordino.engine.embedded import EmbeddedEngine
from sordino.engine.engine import Engine, Limits, Words
from sordino.engine.runners.runner import Runner
from sordino.engine.runners.torch_runner import TorchRunner
from sordino.errors import MissingExtra, OutOfMemory
from sordino.library.library import Library
from sordino.models.base_model import BaseModel
from sordino.models.bundled import BUNDLED
from sordino.models.description import DescribedModel
from sordino.server.metrics import Metrics
from sordino.server.prompts import Voices
from sordino.server.serving import ServerLimits, Serving

if TYPE_CHECKING:
    from sordino.engine.runners.llama_cpp_runner import GgufRunner

# Positions that a row of a conversation takes, roughly.
_SHORT_ROW = 1024

log = logging.getLogger("sordino.server")


@dataclass(frozen=True)
class EngineOptions:
    """rows: most that run at once. queue: most that wait. kv_bytes: for running rows (None: a quarter of what is free).
    prefix_bytes: for prefixes and texts that may come again."""

    rows: int = 16
    queue: int = 256
    kv_bytes: int | None = None
    prefix_bytes: int = 200 << 20

    @property
    def step_tokens(self) -> int:
        """Positions of a step: for every row one, and for those that read a stretch."""
        return max(256, self.rows)


def torch_runner(base: BaseModel, options: EngineOptions) -> TorchRunner:
    """transformers' network under the engine. Raises OutOfMemory."""
    kv_bytes = _free_bytes(base.device) // 4 if options.kv_bytes is None else options.kv_bytes
    runner = TorchRunner(base, kv_bytes=kv_bytes, prefix_bytes=options.prefix_bytes)
    if runner.most_positions == 0:
        raise OutOfMemory(
            "there is no room for a row", got=f"{kv_bytes >> 20} MiB for rows that run", do="give more --kv-memory"
        )
    return runner


@contextmanager
def gguf_runner(model: DescribedModel, path: Path, options: EngineOptions) -> Iterator[GgufRunner]:
    """llama.cpp under the engine. Raises MissingExtra, ModelError, OutOfMemory."""
    try:
        from sordino.engine.runners.llama_context import LlamaContext
        from sordino.engine.runners.llama_cpp_runner import GgufRunner
    except ImportError as error:
        raise MissingExtra("llama.cpp is not installed", got=error.name, do="pip install 'sordino[gguf]'") from None
    whole = options.rows * model.context_length
    # llama.cpp takes all of it at once: as much as every row may need where there is that much, which is the fastest; else what
    # nobody asked for is one long row or many short ones.
    most = max(model.context_length, options.rows * _SHORT_ROW) if options.kv_bytes is None else whole
    kv_bytes = psutil.virtual_memory().available // 4 if options.kv_bytes is None else options.kv_bytes
    context = LlamaContext(
        path,
        kv_bytes=kv_bytes,
        max_cells=min(most, whole),
        row_cells=model.context_length,
        sequences=options.rows,
        batch=options.step_tokens,
        threads=torch.get_num_threads(),
    )
    try:
        yield GgufRunner(model, context, prefix_bytes=options.prefix_bytes)
    finally:
        context.close()


@contextmanager
def opened(
    model: DescribedModel,
    runner: Runner,
    library: Library,
    options: EngineOptions,
    *,
    remembered: Path | None = None,
    limits: ServerLimits | None = None,
    metrics: Metrics | None = None,
) -> Iterator[Serving]:
    """Everything but the HTTP. remembered: the file with each model's default soft prompt. metrics: to go on counting in."""
    words = Words(model.decode, model.stop_ids, model.context_length, model.vocab_size)
    engine = Engine(runner, words, Limits(rows=options.rows, queue=options.queue, tokens=options.step_tokens))
    backend = EmbeddedEngine(engine, crashed=_report)
    metrics = metrics or Metrics()
    metrics.watch(backend.counts, runner.cache_use)
    place = platformdirs.user_config_path("sordino") / "defaults.json" if remembered is None else remembered
    backend.start()
    try:
        yield Serving(
            model.name if model.name in BUNDLED else model.id,
            model,
            backend,
            Voices(model, library, place, rows=engine.limits.lanes),
            metrics,
            limits or ServerLimits(),
            int(time.time()),
            "PyTorch" if isinstance(runner, TorchRunner) else "llama.cpp",
            min(model.context_length, runner.most_positions),
        )
    finally:
        # The runner's memory may be given back after this: the thread must be gone, however long its last step takes.
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

    def hurry(self) -> None:
        """End all requests, those of a model that is leaving too. May be called from a signal's handler."""
        for serving in (self.serving, *self._leaving):
            if serving is not None:
                serving.backend.hurry()

    def close(self) -> None:
        """Give everything back."""
        with self._lock:
            self._stack.close()


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _report(error: BaseException) -> None:
    log.critical("the engine has stopped after an error", exc_info=error)
