"""A running server's parts, made from a base model and a library, and taken apart again."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import psutil
import torch

from sordino import __version__
from sordino.backends.embedded import EmbeddedEngine
from sordino.base_model import BaseModel
from sordino.bundled_models import BUNDLED
from sordino.engine.engine import Engine, Limits, Words
from sordino.engine.torch_runner import TorchRunner
from sordino.library import Library
from sordino.server.metrics import Metrics
from sordino.server.serving import ServerLimits, Serving
from sordino.server.voices import Voices

log = logging.getLogger("sordino.server")


@dataclass(frozen=True)
class EngineOptions:
    """rows: most that run at once. queue: most that wait. kv_bytes: for running rows (None: a quarter of what is free).
    prefix_bytes: for prefixes and texts that may come again."""

    rows: int = 16
    queue: int = 256
    kv_bytes: int | None = None
    prefix_bytes: int = 200 << 20


@contextmanager
def opened(
    base: BaseModel,
    library: Library,
    options: EngineOptions,
    *,
    remembered: Path | None = None,
    limits: ServerLimits | None = None,
) -> Iterator[Serving]:
    """Everything but the HTTP. remembered: the file with each model's default soft prompt."""
    kv_bytes = _free_bytes(base.device) // 4 if options.kv_bytes is None else options.kv_bytes
    runner = TorchRunner(base, kv_bytes=kv_bytes, prefix_bytes=options.prefix_bytes)
    words = Words(base.decode, base.stop_ids, base.context_length, base.vocab_size)
    engine = Engine(runner, words, Limits(rows=options.rows, queue=options.queue, tokens=max(256, options.rows)))
    backend = EmbeddedEngine(engine, crashed=_report)
    metrics = Metrics()
    metrics.watch(backend.counts, runner.cache_use)
    place = platformdirs.user_config_path("sordino") / "defaults.json" if remembered is None else remembered
    backend.start()
    try:
        yield Serving(
            base.name if base.name in BUNDLED else base.id,
            base,
            backend,
            Voices(base, library, place),
            metrics,
            limits or ServerLimits(),
            int(time.time()),
            __version__,
        )
    finally:
        backend.stop(finish=False, seconds=10)


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _report(error: BaseException) -> None:
    log.critical("the engine has stopped after an error", exc_info=error)
