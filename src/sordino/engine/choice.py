"""Which program runs a model: llama.cpp or PyTorch. For the server too, which knows neither."""

from __future__ import annotations

from sordino.engine.runners.llama_library import why_not
from sordino.models.base_model import choose_device
from sordino.models.names import ModelSource

# Of `ModelSource`: the bundled models are .gguf files.
_GGUF_KINDS = ("bundled", "gguf")


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
