"""Base models and tokenizers read through transformers: without its output, and without running strangers' code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

# Before tokenizers is imported: for one text at a time its threads gain nothing, and they warn after every fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from sordino.errors import ModelError, OutOfMemory, SordinoError
from sordino.models import quantised
from sordino.models.architectures import check_config, check_layers
from sordino.models.memory import ran_out
from sordino.models.weight_formats import Format

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"


@contextmanager
def quietly() -> Iterator[None]:
    """transformers' warnings and progress bars switched off inside."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def reading(what: str, where: object) -> Iterator[None]:
    """Any error of transformers, safetensors or tokenizers about a file becomes a ModelError with `what`, or OutOfMemory.

    Only for reading and running: writing has errors of its own.
    """
    try:
        yield
    except SordinoError:
        raise
    except BaseException as error:
        if ran_out(error):
            raise OutOfMemory(
                "the base model does not fit into memory",
                where=where,
                got=str(error).split("\n")[0][:120],
                do="try --dtype bfloat16, --device cpu or a smaller model",
            ) from error
        # The panics of tokenizers are not Exceptions.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _unreadable(what, where, error) from error


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a model folder. Raises ModelError."""
    from transformers import AutoConfig

    with reading("the model's configuration cannot be read", folder), quietly():
        path = folder / CONFIG
        # transformers makes a list as long as there are layers.
        check_layers(json.loads(path.read_bytes()), where=path)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return cast("PreTrainedConfig", config)


def read_generation_config(folder: Path) -> GenerationConfig | None:
    """The generation settings of a model folder; None where it has none of its own. Raises ModelError."""
    from transformers import GenerationConfig

    if not (folder / GENERATION_CONFIG).is_file():
        return None
    with reading("the model's generation settings cannot be read", folder), quietly():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)


def check_readable(config: PreTrainedConfig, *, where: object) -> None:
    """Raise ModelError for an architecture that cannot carry a soft prompt, and for weights that this module does not read.

    Quantised weights are only the latter: whatever places a network in another way may have them.
    """
    check_config(config, where=where)
    quantised: Any = getattr(config, "quantization_config", None)
    if quantised:
        settings = quantised if isinstance(quantised, dict) else quantised.to_dict()
        raise ModelError(
            f"its weights are quantised ({settings.get('quant_method', 'unknown method')}), which Sordino does not read",
            where=where,
            do="choose the same model unquantised, or as a .gguf file",
        )


def read_tokenizer(folder: Path, *, plain: bool = False) -> Any:
    """The tokenizer of a model folder. plain: of transformers' general class. Raises ModelError."""
    with reading("the model's tokenizer cannot be read", folder), quietly():
        if plain:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # Some fail only at the first text.
        tokenizer("a")
        return tokenizer


def is_plain(tokenizer: Any) -> bool:
    """Whether a tokenizer is of transformers' general class."""
    return type(tokenizer) is PreTrainedTokenizerFast


def network_class(config: PreTrainedConfig) -> Any:
    """transformers' class that builds the network of a configuration, by either of its constructors."""
    # Importing them takes two seconds. llama.cpp does without.
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def read_network(
    folder: Path, *, dtype: torch.dtype, device: torch.device, quantise: Format | None = None
) -> PreTrainedModel:
    """The frozen network in eval mode, its weights in `dtype` on `device`. Raises ModelError, OutOfMemory.

    quantise: the format of its linear layers.
    """
    with reading("the model's weights cannot be read", folder.name), quietly():
        read: Any = network_class(read_config(folder)).from_pretrained
        network, loading = read(
            folder,
            # As it is stored, weights are mapped from the disk, and one layer at a time is packed.
            dtype="auto" if quantise else dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        check_complete(loading, folder)
        _fuse_activations(network)
        if quantise:
            return quantised.quantise(cast("PreTrainedModel", network), quantise, dtype, device)
        # Moved parameter by parameter, so main memory is freed along the way.
        return cast("PreTrainedModel", network.to(device).eval().requires_grad_(False))


def _fuse_activations(network: PreTrainedModel) -> None:
    """Give the feed-forward layers of a gated T5 PyTorch's GELU in place of transformers', which is the same formula in eight
    operations: forward and backward pass of it take a quarter of the time (LOG.md). It has no weights.
    """
    if network.config.is_encoder_decoder:
        from transformers.activations import NewGELUActivation

        for module in network.modules():
            for name, child in module.named_children():
                if isinstance(child, NewGELUActivation):
                    setattr(module, name, nn.GELU(approximate="tanh"))


def check_complete(loading: Any, where: object) -> None:
    """Raises ModelError for missing weights, which transformers fills with random numbers."""
    missing = sorted(loading.get("missing_keys") or ())
    if missing:
        raise ModelError(
            "weights are missing",
            where=where,
            got=f"no {missing[0]} and {len(missing) - 1} more",
            do="fetch the model again",
        )


def _unreadable(what: str, where: object, error: BaseException) -> ModelError:
    """transformers' error in one sentence."""
    first_line = str(error).strip().split("\n")[0]
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return ModelError(
            "the model needs its own Python code, which Sordino does not run",
            where=where,
            do="choose a model whose architecture transformers knows",
        )
    return ModelError(what, where=where, got=first_line[:300] or type(error).__name__)
