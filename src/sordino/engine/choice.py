"""Which program runs a model, llama.cpp or PyTorch, and what that takes. For the server too, which knows neither."""

from __future__ import annotations

from sordino.engine.config import EngineOptions
from sordino.engine.runners.llama_library import why_not
from sordino.engine.runners.llama_room import cell_budget, cell_bytes
from sordino.models.base_model import choose_device
from sordino.models.bundled import BUNDLED
from sordino.models.gguf_header import read_gguf_header
from sordino.models.names import ModelSource

# Of `ModelSource`: the bundled models are .gguf files.
_GGUF_KINDS = ("bundled", "gguf")

# Measured on SmolLM2 and Gemma 3 270M: what a server takes besides weights and rows, and for each token of the vocabulary.
_PROGRAM_BYTES = 340 << 20
_TOKEN_BYTES = 800


def why_torch(source: ModelSource, runner: str, only_torch: str = "") -> str:
    """Why PyTorch, or vLLM, runs a model; "" where llama.cpp does. For the runner "gguf": why llama.cpp cannot."""
    if runner in ("torch", "vllm"):
        return "as --runner says"
    if source.kind not in _GGUF_KINDS:
        return "llama.cpp reads .gguf files only"
    if only_torch or runner == "gguf":
        return only_torch
    device = choose_device(None).type
    return f"there is a GPU, {device}" if device != "cpu" else why_not()


def llama_cpp_bytes(source: ModelSource, options: EngineOptions, free_bytes: int) -> int:
    """An estimate of what a server takes besides the weights: the program, and the running rows, which llama.cpp allocates when it
    starts. Raises ModelError, OutOfMemory.
    """
    if source.kind == "bundled":
        facts = BUNDLED[source.name]
        vocabulary, context_length, shape = facts.sizes.vocab_size, facts.context_length, facts.cache_shape
    else:
        assert source.path is not None
        header = read_gguf_header(source.path)
        vocabulary, context_length, shape = header.vocab_size, header.context_length, header.cache_shape
    size = cell_bytes(*shape)
    rows = cell_budget(options, context_length, free_bytes).plan(size).total * size
    return rows + _PROGRAM_BYTES + vocabulary * _TOKEN_BYTES
