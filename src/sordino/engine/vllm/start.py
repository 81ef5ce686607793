"""Starting vLLM: its engine in processes of its own, and the backend in front of it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import psutil

from sordino.engine.config import EngineOptions
from sordino.engine.vllm.backend import SAMPLER, Client, VllmBackend
from sordino.engine.vllm.process import SERVER_PID
from sordino.errors import ConfigError, MissingExtra, ModelError
from sordino.models import files
from sordino.models.description import DescribedModel, describe_folder

# Where the user has not set them. A fork would copy a process of many threads; and no usage is reported.
_ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
# Of vLLM's flags those that are not the user's here, with what to do.
_OURS = {
    "model": "give --model",
    "tokenizer": "it is the model's own",
    "trust_remote_code": "code of strangers is not run",
    "enable_prompt_embeds": "it is on",
    "logits_processors": "our sampler is the one",
    "load_format": "weights are read from safetensors",
    "max_num_seqs": "give --rows",
    "kv_cache_memory_bytes": "give --kv-memory",
    "speculative_config": "vLLM has no speculative decoding with vectors and logits processors",
    "enable_lora": "adapters have no names here",
}


@contextmanager
def running(
    name: str,
    options: EngineOptions,
    *,
    status: Callable[[], AbstractContextManager[object]] = nullcontext,
    notify: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[DescribedModel, VllmBackend]]:
    """A model and vLLM, which runs it. status: entered while it starts. Raises MissingExtra, ConfigError, ModelError."""
    check_installed()
    _check_options(options)
    os.environ.update({**_ENVIRONMENT, **os.environ, SERVER_PID: str(os.getpid())})
    with _event_loop() as loop:
        with status():
            flags = parsed(options.vllm)
            model, folder = describe_folder(files.resolve(name), notify=notify)
            if model.encoder_decoder is not None:
                raise ModelError("vLLM runs no encoder-decoders", where=name, do="serve it with --runner torch")
            arguments = _arguments(flags, folder, options)
            notify(f"vLLM runs {model.name}")
            engine = asyncio.run_coroutine_threadsafe(_started(arguments, name), loop).result()
        try:
            yield model, VllmBackend(model, Client(engine, loop, options.rows, options.queue, samples=True))
        finally:
            asyncio.run_coroutine_threadsafe(_stopped(engine), loop).result()


def check_installed() -> None:
    """Raises MissingExtra."""
    if find_spec("vllm") is None:
        raise MissingExtra(
            "vLLM is not installed", where="--runner vllm", do="pip install 'sordino[vllm]' (docs/vllm.md)"
        )


def _check_options(options: EngineOptions) -> None:
    if options.prefix_memory != EngineOptions().prefix_memory:
        raise ConfigError("vLLM's cache is a part of --kv-memory", where="--prefix-memory", do="leave it out")


def _arguments(given: Any, folder: Path, options: EngineOptions) -> Any:
    """vLLM's AsyncEngineArgs. given: its flags, as they were parsed."""
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform

    kv_bytes = options.kv_bytes
    if kv_bytes is None and current_platform.is_cpu():
        # vLLM would take nearly all of it.
        kv_bytes = psutil.virtual_memory().available // 4
    ours: dict[str, object] = {
        "model": str(folder),
        "tokenizer": str(folder),
        "load_format": "safetensors",
        "enable_prompt_embeds": True,
        "logits_processors": [SAMPLER],
        "max_num_seqs": options.rows,
        "kv_cache_memory_bytes": kv_bytes,
        # As long as the memory allows.
        "max_model_len": -1 if given.max_model_len is None else given.max_model_len,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    for name, value in ours.items():
        setattr(given, name, value)
    return AsyncEngineArgs.from_cli_args(given)


def parsed(flags: Sequence[str]) -> Any:
    """The flags of `--vllm`, by vLLM's own parser. Raises ConfigError for one that it does not have, or that is not the user's."""
    from vllm import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    def refuse(message: str) -> NoReturn:
        raise ConfigError("not a flag of vLLM", where="--vllm", got=message, do="see vllm serve --help=all")

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser(add_help=False, allow_abbrev=False))
    parser.error = refuse
    found = parser.parse_args([f"--{flag.removeprefix('--')}" for flag in flags])
    for name, do in _OURS.items():
        if getattr(found, name, None) != parser.get_default(name):
            raise ConfigError("this flag of vLLM is not for --vllm", where="--vllm", got=name.replace("_", "-"), do=do)
    return found


async def _started(arguments: Any, name: str) -> Any:
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        return AsyncLLM.from_engine_args(arguments)
    # pydantic's, argparse's and those of its processes.
    except Exception as error:
        raise ModelError(
            "vLLM does not run this model here", where=name, got=" ".join(str(error).split())[:400]
        ) from error


async def _stopped(engine: Any) -> None:
    """Its processes end here."""
    engine.shutdown()
    # It calls this again when it is deleted, which may be when Python ends and half of what it needs is gone.
    engine.shutdown = lambda timeout=None: None
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@contextmanager
def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop on a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="vllm", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
