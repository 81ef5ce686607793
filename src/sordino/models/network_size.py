"""The size of the network that a configuration describes, found without building it.

transformers allocates what a configuration says before it looks for the weights, so a file of 200 bytes can ask for 20 GB. The
network is therefore built on torch's meta device first, which takes no memory, and must not be larger than the stored weights.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from sordino.errors import ModelError
from sordino.models.loading import network_class, quietly, reading

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# For parameters that a family assembles from several stored tensors, or does not store.
_SPARE_PARAMETERS = 1_000
# For padding of the vocabulary, and for buffers that some families call parameters.
_SPARE_SHARE, _SPARE_NUMBERS = 1.05, 1 << 20


@dataclass(frozen=True)
class NetworkSize:
    """parameters: tied ones counted once. buffer_bytes: of computed tables of positions and masks."""

    parameters: int
    buffer_bytes: int


def check_agreement(config: PreTrainedConfig, *, stored: int, tensors: int, where: object) -> NetworkSize:
    """The size of the network that `config` describes. stored, tensors: numbers and tensors in the weights.

    Raises ModelError where it is larger than what is stored.
    """
    with _at_most(2 * tensors + _SPARE_PARAMETERS, where):
        network = empty_network(config, where=where)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    size = NetworkSize(parameters, sum(buffer.numel() * buffer.element_size() for buffer in network.buffers()))
    if size.parameters > stored * _SPARE_SHARE + _SPARE_NUMBERS:
        raise _disagreement(where, f"{stored:,} numbers in the weights", f"a configuration for {size.parameters:,}")
    return size


def empty_network(config: PreTrainedConfig, *, where: object) -> PreTrainedModel:
    """The network that `config` describes, on torch's meta device. Raises ModelError."""
    make: Any = network_class(config).from_config
    with reading("the model's configuration gives no network", where), quietly(), torch.device("meta"):
        network: PreTrainedModel = make(config)
    return network


@contextmanager
def _at_most(limit: int, where: object) -> Iterator[None]:
    """Inside, raises ModelError as soon as this thread makes more parameters."""
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
