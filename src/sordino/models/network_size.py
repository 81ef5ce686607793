"""How large a network a configuration asks for, found without building it: nothing of a stranger's numbers is believed.

A configuration is a few numbers, and transformers allocates whatever they say before it looks for the weights: a file of 200 bytes
can ask for 20 GB. So the network is laid out on torch's meta device first, which takes no memory, and must not be larger than what
is stored.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoModelForCausalLM, PreTrainedConfig

from sordino.errors import ModelError
from sordino.models.loading import quietly, reading

# Parameters of a module that are put together of several stored tensors, or of which a family keeps more than it stores.
_SPARE_PARAMETERS = 1_000
# Rows that some families pad the vocabulary with, and buffers that others call parameters.
_SPARE_SHARE, _SPARE_NUMBERS = 1.05, 1 << 20


@dataclass(frozen=True)
class NetworkSize:
    """parameters: numbers, tied ones once. buffer_bytes: tables that are computed, of positions and masks."""

    parameters: int
    buffer_bytes: int


def check_agreement(config: PreTrainedConfig, *, stored: int, tensors: int, where: object) -> NetworkSize:
    """The size of the network that `config` asks for. stored: how many numbers the weights hold, in how many tensors.

    Raises ModelError where it is larger than what is stored.
    """
    size = _laid_out(config, limit=2 * tensors + _SPARE_PARAMETERS, where=where)
    if size.parameters > stored * _SPARE_SHARE + _SPARE_NUMBERS:
        raise _disagreement(where, f"{stored:,} numbers in the weights", f"a configuration for {size.parameters:,}")
    return size


def _laid_out(config: PreTrainedConfig, *, limit: int, where: object) -> NetworkSize:
    make: Any = AutoModelForCausalLM.from_config
    with (
        reading("no network can be made of the model's configuration", where),
        quietly(),
        torch.device("meta"),
        _at_most(limit, where),
    ):
        network = make(config)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return NetworkSize(parameters, sum(buffer.numel() * buffer.element_size() for buffer in network.buffers()))


@contextmanager
def _at_most(limit: int, where: object) -> Iterator[None]:
    """Raises ModelError inside as soon as this thread has made more parameters."""
    thread, made = threading.get_ident(), 0

    def count(module: object, name: str, parameter: object) -> None:
        nonlocal made
        made += threading.get_ident() == thread
        if made > limit:
            raise _disagreement(where, f"weights for at most {limit:,} parameters", "a configuration for more")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _disagreement(where: object, expected: str, got: str) -> ModelError:
    return ModelError(
        "the configuration and the weights do not belong together",
        where=where,
        expected=expected,
        got=got,
        do="fetch the model again",
    )
