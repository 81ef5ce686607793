"""The backends that this package brings: the engine on a thread, over PyTorch or llama.cpp."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from sordino.engine.config import EngineOptions
from sordino.engine.embedded import EmbeddedEngine
from sordino.engine.engine import Engine, Limits, TokenizerInfo
from sordino.engine.runners.runner import Runner
from sordino.engine.runners.torch_runner import TorchRunner
from sordino.engine.threads import in_thread_of_its_own
from sordino.errors import ConfigError, MissingExtra, OutOfMemory
from sordino.models import files
from sordino.models.base_model import BaseModel
from sordino.models.description import DescribedModel, describe

if TYPE_CHECKING:
    from sordino.engine.runners.llama_cpp_runner import GgufRunner

# Positions that a row of a conversation takes, roughly.
_SHORT_ROW = 1024

log = logging.getLogger("sordino.server")


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
    # llama.cpp allocates everything at once: a full context for every row where memory holds that, which is fastest. Else the rows
    # share a pool: what --kv-memory holds, or by default one long row or many short ones.
    most = max(model.context_length, options.rows * _SHORT_ROW) if options.kv_bytes is None else whole
    kv_bytes = psutil.virtual_memory().available // 4 if options.kv_bytes is None else options.kv_bytes
    context = LlamaContext(
        path,
        kv_bytes=kv_bytes,
        max_cells=min(most, whole),
        # A quarter more: a prompt that is held has its cells several times.
        row_cells=model.context_length * 5 // 4,
        sequences=options.rows,
        batch=options.step_tokens,
        threads=torch.get_num_threads(),
    )
    try:
        yield GgufRunner(model, context, prefix_bytes=options.prefix_bytes)
    finally:
        context.close()


@contextmanager
def running(
    name: str,
    options: EngineOptions,
    load: Callable[[], BaseModel],
    *,
    for_torch: bool = False,
    status: Callable[[], AbstractContextManager[object]] = nullcontext,
    notify: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[DescribedModel, EmbeddedEngine]]:
    """A model and what runs it.

    load: the model for PyTorch. for_torch: whether settings that only PyTorch knows were given. status: is entered while a file for
    llama.cpp is read. Raises as `llama_cpp_file`, `torch_runner` and `gguf_runner`.
    """
    path = llama_cpp_file(name, options.runner, for_torch=for_torch, notify=notify)
    if path is None:
        base, rows = in_thread_of_its_own(lambda: _loaded(load(), options))
        yield base, embedded(base, rows, options)
        return
    with ExitStack() as stack:
        with status():
            model = describe(files.resolve(name), path, notify=notify)
            runner = stack.enter_context(gguf_runner(model, path, options))
        yield model, embedded(model, runner, options)


def _loaded(base: BaseModel, options: EngineOptions) -> tuple[BaseModel, TorchRunner]:
    return base, torch_runner(base, options)


def llama_cpp_file(name: str, runner: str, *, for_torch: bool, notify: Callable[[str], None]) -> Path | None:
    """The file for llama.cpp; None where PyTorch is to run the model. Raises ConfigError, MissingExtra."""
    if runner == "torch":
        return None
    installed = find_spec("llama_cpp") is not None
    if runner == "auto" and (not installed or for_torch):
        return None
    path = files.gguf_file(files.resolve(name), notify=notify)
    if runner == "gguf":
        if path is None:
            raise ConfigError("llama.cpp reads .gguf files only", where="--runner gguf", got=name)
        if for_torch:
            raise ConfigError("--device and --dtype are for PyTorch", where="--runner gguf", do="leave them out")
        if not installed:
            raise MissingExtra("llama.cpp is not installed", where="--runner gguf", do="pip install 'sordino[gguf]'")
    return path


def embedded(model: DescribedModel, runner: Runner, options: EngineOptions) -> EmbeddedEngine:
    """The engine over a runner, on a thread of its own."""
    info = TokenizerInfo(model.decode, model.stop_ids, model.context_length, model.vocab_size)
    engine = Engine(runner, info, Limits(rows=options.rows, queue=options.queue, tokens=options.step_tokens))
    return EmbeddedEngine(engine, network=model if isinstance(model, BaseModel) else None, crashed=_report)


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _report(error: BaseException) -> None:
    log.critical("the engine has stopped after an error", exc_info=error)
