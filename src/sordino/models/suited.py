"""Which base models of the catalogue can be trained on in this machine's memory. Estimated: loading one measures its weights."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from sordino.models.base_model import choose_device, choose_dtype
from sordino.models.catalogue import KnownModel, catalogue
from sordino.models.weight_formats import Format

# Of a run besides the weights: the program and what CUDA takes for itself; activations, which grow with the network.
_OVERHEAD_BYTES = 2_000_000_000
_OVERHEAD_BYTES_PER_PARAMETER = 0.3
# As bitsandbytes packs linear layers.
_NF4_BITS = 4.5
# Of the memory that a run may take.
_MOST = 0.95


@dataclass(frozen=True)
class DeviceMemory:
    """Where a base model's weights go by default: a GPU's memory or the machine's. per_parameter: bytes of a weight there."""

    where: str
    free: int
    total: int
    per_parameter: int


@dataclass(frozen=True)
class SuitedModel:
    """A base model and how this machine's memory holds it while a soft prompt is trained. name, quantise: for `load_model`.

    needed: bytes of memory, estimated. download: bytes. gated: the Hub asks for its licence to be accepted first.
    """

    name: str
    quantise: Format | None
    needed: int
    download: int
    licence: str
    gated: bool

    def __str__(self) -> str:
        how = f", quantise={self.quantise!r}" if self.quantise else ""
        access = ", accept it on the Hub first" if self.gated else ""
        return (
            f"{self.name}{how}: about {self.needed / 1e9:.0f} GB of memory, {self.download / 1e9:.1f} GB to download; "
            f"{self.licence}{access}"
        )


def device_memory() -> DeviceMemory:
    device = choose_device(None)
    per_parameter = choose_dtype(None, device).itemsize
    if device.type == "cuda":
        return DeviceMemory("GPU memory", *torch.cuda.mem_get_info(device), per_parameter)
    found = psutil.virtual_memory()
    return DeviceMemory("memory", found.available, found.total, per_parameter)


def suited_models() -> list[SuitedModel]:
    """The base models that can be trained on in this machine's memory, the smallest first. Loads and downloads none.

    On a GPU, what is too large as it is comes with quantise="nf4", linear layers in 4 bits.
    """
    memory = device_memory()
    return [suited for known in catalogue().values() if (suited := _suited(known, memory))]


def _suited(known: KnownModel, memory: DeviceMemory) -> SuitedModel | None:
    formats: tuple[Format | None, ...] = (None, "nf4") if memory.where == "GPU memory" else (None,)
    for quantise in formats:
        needed = training_bytes(known, memory.per_parameter, quantise)
        if needed <= _MOST * memory.total:
            return SuitedModel(known.name, quantise, needed, known.download, known.licence, known.gated)
    return None


def training_bytes(known: KnownModel, per_parameter: int, quantise: Format | None) -> int:
    """Bytes of memory that a run on a base model takes, packed to NF4 or not."""
    weights = float(per_parameter * known.parameters)
    if quantise:
        # The catalogue does not say whether the output head is the table of embeddings, which is not packed: two tables.
        tables = min(2 * known.sizes.d_model * known.sizes.vocab_size, known.parameters)
        weights = per_parameter * tables + _NF4_BITS / 8 * (known.parameters - tables)
    return round(weights + _OVERHEAD_BYTES + _OVERHEAD_BYTES_PER_PARAMETER * known.parameters)
