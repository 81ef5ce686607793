"""The backends that this package brings: the engine on a thread, over PyTorch or llama.cpp; and vLLM."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

import psutil
import torch

from sordino.engine.backend import Backend
from sordino.engine.choice import why_torch
from sordino.engine.config import EngineOptions, Limits, Sampling
from sordino.engine.embedded import EmbeddedEngine
from sordino.engine.engine import Engine
from sordino.engine.generate import ADVICE, TextRequest, longest_row, rows_of
from sordino.engine.runners.encoder_decoder_runner import EncoderDecoderRunner
from sordino.engine.runners.llama_context import MAX_SEQUENCES, LlamaContext
from sordino.engine.runners.llama_cpp_runner import GgufRunner
from sordino.engine.runners.llama_library import STRENGTHS, library
from sordino.engine.runners.llama_room import cell_budget
from sordino.engine.runners.runner import Runner
from sordino.engine.runners.torch_runner import TorchRunner
from sordino.engine.vllm.start import running as vllm_running
from sordino.engine.waiting import in_thread_of_its_own
from sordino.errors import ConfigError, OutOfMemory
from sordino.models import files
from sordino.models.base_model import BaseModel
from sordino.models.description import DescribedModel, describe
from sordino.prompts.attention import UNSUPPORTED_STRENGTHS, can_give
from sordino.prompts.kv_prompt import KVPrompt
from sordino.prompts.mixture import StoredPrompt, components_of
from sordino.prompts.prompt import attention_of

log = logging.getLogger("sordino.server")


def torch_runner(base: BaseModel, options: EngineOptions) -> TorchRunner | EncoderDecoderRunner:
    """transformers' network under the engine. Raises OutOfMemory."""
    kv_bytes = _free_bytes(base.device) // 4 if options.kv_bytes is None else options.kv_bytes
    runner: TorchRunner | EncoderDecoderRunner
    if base.encoder_decoder is not None:
        runner = EncoderDecoderRunner(base, kv_bytes=kv_bytes)
    else:
        runner = TorchRunner(base, kv_bytes=kv_bytes, prefix_bytes=options.prefix_bytes)
    if runner.most_positions == 0:
        raise OutOfMemory(
            "there is no room for a row", got=f"{kv_bytes >> 20} MiB for rows that run", do="give more --kv-memory"
        )
    return runner


@contextmanager
def gguf_runner(
    model: DescribedModel, path: Path, options: EngineOptions, *, row_cells: int | None = None
) -> Iterator[GgufRunner]:
    """llama.cpp under the engine. row_cells: that the longest row needs, where that is known. Raises MissingExtra, ModelError,
    OutOfMemory."""
    free = psutil.virtual_memory().available
    context = LlamaContext(
        path,
        cell_budget(options, model.context_length, free, row_cells=row_cells),
        batch=options.step_tokens,
        threads=torch.get_num_threads(),
    )
    try:
        yield GgufRunner(model, context, prefix_bytes=options.prefix_bytes)
    finally:
        context.close()


@contextmanager
def writing(
    model: DescribedModel, path: Path | None, requests: Sequence[TextRequest], sampling: Sampling, at_once: int
) -> Iterator[BaseModel | Runner]:
    """What `generate.generate` continues these with, so many at once: llama.cpp from the file, or the loaded base model."""
    if path is None:
        assert isinstance(model, BaseModel)
        yield model
        return
    rows = max(rows_of(requests[at : at + at_once]) for at in range(0, len(requests), at_once))
    cells = longest_row(model, requests, sampling)
    try:
        with gguf_runner(model, path, EngineOptions(rows=rows), row_cells=cells) as runner:
            yield runner
    except OutOfMemory as error:
        # Its own advice is for a server.
        raise OutOfMemory(error.what, where=error.where, expected=error.expected, got=error.got, do=ADVICE) from error


@contextmanager
def running(
    name: str,
    options: EngineOptions,
    load: Callable[[], BaseModel],
    *,
    only_torch: str = "",
    status: Callable[[], AbstractContextManager[object]] = nullcontext,
    notify: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[DescribedModel, Backend]]:
    """A model and what runs it.

    load: the model for PyTorch. only_torch: as in `llama_cpp_file`. status: is entered while a file for llama.cpp is read, or vLLM
    starts. Raises as `llama_cpp_file`, `torch_runner`, `gguf_runner` and `vllm.start.running`.
    """
    if options.runner == "vllm":
        if only_torch:
            raise ConfigError(only_torch, where="--runner vllm", do="say --vllm dtype=float32 and the like")
        with vllm_running(name, options, status=status, notify=notify) as running_it:
            yield running_it
        return
    path = llama_cpp_file(name, options.runner, only_torch=only_torch, notify=notify)
    if path is None:
        base, rows = in_thread_of_its_own(lambda: _loaded(load(), options))
        yield base, embedded(rows, options)
        return
    with ExitStack() as stack:
        with status():
            model = describe(files.resolve(name), path, notify=notify)
            runner = stack.enter_context(gguf_runner(model, path, options))
        yield model, embedded(runner, options)


def _loaded(base: BaseModel, options: EngineOptions) -> tuple[BaseModel, Runner]:
    return base, torch_runner(base, options)


def llama_cpp_file(name: str, runner: str, *, only_torch: str, notify: Callable[[str], None]) -> Path | None:
    """The file for llama.cpp; None where PyTorch is to run the model. `notify` gets a line that says which.

    only_torch: the part of the request that llama.cpp cannot do, "" if it can do all. Raises ConfigError, MissingExtra, ModelError.
    """
    source = files.resolve(name)
    if runner == "vllm":
        raise ConfigError("vLLM is for sordino serve", where="--runner vllm", got=name, do="leave it out")
    why = why_torch(source, runner, only_torch)
    if why and runner == "gguf":
        raise ConfigError(why, where="--runner gguf", got=name, do="leave --runner gguf out")
    if why:
        notify(f"PyTorch runs {source.name} ({why})")
        return None
    library()
    path = files.gguf_file(source, notify=notify)
    assert path is not None, "of this kind"
    notify(f"llama.cpp runs {source.name}")
    return path


def only_torch_writes(given: Sequence[tuple[str, StoredPrompt | None]], at_once: int) -> str:
    """Why llama.cpp cannot continue these texts with these soft prompts, so many at once; "" where it can."""
    parts = [components_of(prompt) for _, prompt in given]
    if any(sum(map(len, parts[at : at + at_once])) > MAX_SEQUENCES for at in range(0, len(parts), at_once)):
        return f"llama.cpp runs at most {MAX_SEQUENCES} texts at once"
    if not all(can_give(STRENGTHS, attention_of(part).strength) for components in parts for part in components):
        return f"llama.cpp does not support {UNSUPPORTED_STRENGTHS[STRENGTHS][0]}"
    behind_nothing = [components for (text, _), components in zip(given, parts, strict=True) if not text]
    if any(isinstance(part, KVPrompt) for components in behind_nothing for part in components):
        return "llama.cpp needs a text after a KV prompt"
    return ""


def embedded(runner: Runner, options: EngineOptions) -> EmbeddedEngine:
    """The engine over a runner, on a thread of its own."""
    limits = Limits(rows=options.rows, queue=options.queue, tokens=options.step_tokens)
    return EmbeddedEngine(Engine(runner, limits), crashed=_report)


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _report(error: BaseException) -> None:
    log.critical("the engine has stopped after an error", exc_info=error)
