"""The library of llama.cpp: found, checked and declared, as much of its C interface as Sordino uses.

It is the prebuilt one of the `xllamacpp` package, or one built for this machine (`make gguf`), which comes first. The interface
changes with every version, and a wrong declaration reads other memory without a word: so a library of another version, or with
other structures, is refused by name. Declarations: include/llama.h of the version in `VERSION`.
"""

from __future__ import annotations

import ctypes
import platform
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int8,
    c_int32,
    c_size_t,
    c_uint8,
    c_uint32,
    c_void_p,
)
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sordino.errors import MissingExtra, ModelError
from sordino.prompts.attention import Strengths

# What the library says of itself, llama.cpp's version and ggml's; and the package that brings it.
VERSION = ("0.6.0-dev", "0.26.0")
PACKAGE = "xllamacpp==2026.10.11549"
POOLING_NONE = 0
# Copies of a prompt's cells are whole, and never fewer than one.
STRENGTHS: Strengths = "whole"
# Where a library may be, the first that is there: a package, and files in it.
PLACES = (("sordino_llama", ("libllama.so", "libllama.dylib", "llama.dll")), ("xllamacpp", ("xllamacpp*.so",)))
# The kernels of the prebuilt library are for processors since 2013 (Haswell, Zen); on an older one it ends the process.
_NEEDED = ("AVX2", "AVX512")
# More than any of the structures.
_ROOM = 4096

LogCallback = CFUNCTYPE(None, c_int, c_char_p, c_void_p)


class ModelParams(ctypes.Structure):
    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    )


class ContextParams(ctypes.Structure):
    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),
        ("type_v", c_int),
        ("moe_cache_size", c_size_t),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    )


class TokenBatch(ctypes.Structure):
    """Tokens or vectors, never both."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


# What the library fills in by itself; the fields that are not here are 0 there.
_MODEL_DEFAULTS = {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "use_extra_bufts": True}
_MINUS_ONE = (
    "rope_scaling_type",
    "pooling_type",
    "attention_type",
    "flash_attn_type",
    "yarn_ext_factor",
    "yarn_attn_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
    "defrag_thold",
)
_ONE = ("n_seq_max", "n_outputs_max_per_seq", "type_k", "type_v", "offload_kqv", "no_perf", "op_offload", "swa_full")
_CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_threads": 4,
    "n_threads_batch": 4,
    **dict.fromkeys(_MINUS_ONE, -1),
    **dict.fromkeys(_ONE, 1),
}
STRUCTURES: tuple[tuple[str, type[ctypes.Structure], dict[str, Any]], ...] = (
    ("llama_model_default_params", ModelParams, _MODEL_DEFAULTS),
    ("llama_context_default_params", ContextParams, _CONTEXT_DEFAULTS),
)

# Each function's result, then its arguments. Pointers to llama.cpp's own structures are opaque.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "llama_version": (c_char_p,),
    "ggml_version": (c_char_p,),
    "llama_backend_init": (None,),
    "llama_log_set": (None, LogCallback, c_void_p),
    "llama_print_system_info": (c_char_p,),
    "llama_model_load_from_file": (c_void_p, c_char_p, ModelParams),
    "llama_model_free": (None, c_void_p),
    "llama_model_n_embd": (c_int32, c_void_p),
    "llama_model_n_embd_inp": (c_int32, c_void_p),
    "llama_model_n_embd_out": (c_int32, c_void_p),
    "llama_model_n_layer": (c_int32, c_void_p),
    "llama_model_n_head": (c_int32, c_void_p),
    "llama_model_n_head_kv": (c_int32, c_void_p),
    "llama_model_n_swa": (c_int32, c_void_p),
    "llama_model_is_recurrent": (c_bool, c_void_p),
    "llama_model_is_hybrid": (c_bool, c_void_p),
    "llama_model_has_encoder": (c_bool, c_void_p),
    "llama_model_has_decoder": (c_bool, c_void_p),
    "llama_model_meta_val_str": (c_int32, c_void_p, c_char_p, c_char_p, c_size_t),
    "llama_model_get_vocab": (c_void_p, c_void_p),
    "llama_vocab_n_tokens": (c_int32, c_void_p),
    "llama_init_from_model": (c_void_p, c_void_p, ContextParams),
    "llama_free": (None, c_void_p),
    "llama_decode": (c_int32, c_void_p, TokenBatch),
    "llama_get_logits": (POINTER(c_float), c_void_p),
    "llama_get_embeddings": (POINTER(c_float), c_void_p),
    "llama_get_memory": (c_void_p, c_void_p),
    "llama_memory_clear": (None, c_void_p, c_bool),
    "llama_memory_seq_cp": (None, c_void_p, c_int32, c_int32, c_int32, c_int32),
    "llama_memory_seq_rm": (c_bool, c_void_p, c_int32, c_int32, c_int32),
    "llama_state_seq_get_size": (c_size_t, c_void_p, c_int32),
    "llama_state_seq_get_data": (c_size_t, c_void_p, POINTER(c_uint8), c_size_t, c_int32),
    "llama_state_seq_set_data": (c_size_t, c_void_p, POINTER(c_uint8), c_size_t, c_int32),
}


@cache
def library() -> Any:
    """llama.cpp's functions, in this process. Raises MissingExtra, and ModelError for a library that cannot be used here."""
    path = library_file()
    if path is None:
        raise MissingExtra("llama.cpp is not installed", do=f"pip install {PACKAGE}; not for Windows: make gguf there")
    if path.parent.name == "xllamacpp":
        _check_processor(path)
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        # Some small systems lack OpenMP's libgomp.so.1.
        raise ModelError(
            "llama.cpp's library cannot be loaded",
            where=path,
            got=error,
            do="install what it asks for (libgomp.so.1: apt install libgomp1), or use --runner torch",
        ) from None
    return declared(loaded, where=path)


def why_not() -> str:
    """Why llama.cpp cannot be used here, in a line; "" where it can."""
    try:
        library()
    except (MissingExtra, ModelError) as error:
        return error.message
    return ""


def library_file() -> Path | None:
    """The library's file; None where there is none."""
    for package, patterns in PLACES:
        found = find_spec(package)
        for folder in (found.submodule_search_locations if found else None) or ():
            for pattern in patterns:
                for file in sorted(Path(folder).glob(pattern)):
                    return file
    return None


def declared(loaded: Any, *, where: object) -> Any:
    """A loaded library with its functions declared. Raises ModelError where it is another than ours."""
    expected = f"llama.cpp {VERSION[0]} with ggml {VERSION[1]}"
    missing = [name for name in (*_FUNCTIONS, *(name for name, _, _ in STRUCTURES)) if not hasattr(loaded, name)]
    if missing:
        raise _another(where, expected, f"no {missing[0]}")
    for name, (result, *arguments) in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    version = (loaded.llama_version().decode(), loaded.ggml_version().decode())
    if version != VERSION:
        raise _another(where, expected, f"llama.cpp {version[0]} with ggml {version[1]}")
    for name, structure, defaults in STRUCTURES:
        _check_structure(loaded, name, structure, defaults, where)
    return loaded


def _check_structure(
    loaded: Any, name: str, structure: type[ctypes.Structure], defaults: dict[str, Any], where: object
) -> None:
    function = getattr(loaded, name)
    size = _size_returned(function)
    if size not in (None, ctypes.sizeof(structure)):
        raise _another(where, f"{ctypes.sizeof(structure)} bytes from {name}", size)
    function.restype, function.argtypes = structure, []
    values = function()
    for field, *_ in structure._fields_:
        value = getattr(values, field)
        if (value or 0) != defaults.get(field, 0):
            raise _another(where, f"{defaults.get(field, 0)} for {field} from {name}", value)


def _size_returned(function: Any) -> int | None:
    """How many bytes a function that returns a structure writes; None where that cannot be seen.

    On x86-64 the caller gives the address of the result as the first argument. What is written shows in two runs over different
    bytes; padding at the end does not, so the size is rounded up to that of a pointer.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    function.restype, function.argtypes = None, [c_void_p]
    written = []
    for filler in (b"\x00", b"\xff"):
        room = ctypes.create_string_buffer(filler * _ROOM, _ROOM)
        function(room)
        written.append(room.raw)
    last = max(at for at in range(_ROOM) if written[0][at] == written[1][at])
    return (last // 8 + 1) * 8


def _check_processor(path: Path) -> None:
    import torch

    if platform.machine().lower() in ("x86_64", "amd64") and torch.backends.cpu.get_cpu_capability() not in _NEEDED:
        raise ModelError(
            "this processor lacks AVX2, for which llama.cpp's library is built",
            where=path,
            do="build one for it (make gguf), or run the model with --runner torch",
        )


def _another(where: object, expected: object, got: object) -> ModelError:
    own = Path(str(where)).parent.name == PLACES[0][0]
    do = "make gguf again, or pip uninstall sordino-llama" if own else f"pip install {PACKAGE}"
    return ModelError("this is another llama.cpp than Sordino's", where=where, expected=expected, got=got, do=do)
