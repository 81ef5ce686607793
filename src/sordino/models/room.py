"""Whether a base model fits into the memory of a machine, by arithmetic, before its weights are read."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from sordino.errors import OutOfMemory
from sordino.models.network_size import empty_network
from sordino.models.quantised import ParameterCounts
from sordino.models.weight_formats import FORMATS, OFFLOAD, Format


@dataclass(frozen=True)
class Numbers:
    """How the numbers of a base model are held. quantise: of its linear layers, None for `dtype` too."""

    dtype: torch.dtype
    quantise: Format | None = None

    def __str__(self) -> str:
        return self.quantise or str(self.dtype).removeprefix("torch.")

    @property
    def flag(self) -> str:
        if self.quantise == OFFLOAD:
            return "--offload"
        return f"--quantise {self}" if self.quantise else f"--dtype {self}"


def weight_bytes(network: PreTrainedModel, numbers: Numbers) -> int:
    """Bytes of a network's weights, held in these number types. It may be on torch's meta device. Buffers are not counted."""
    if numbers.quantise is None:
        return numbers.dtype.itemsize * sum(parameter.numel() for parameter in network.parameters())
    return ParameterCounts.of(network, numbers.quantise).bytes(numbers.quantise, numbers.dtype.itemsize)


def check_room(config: PreTrainedConfig, numbers: Numbers, device: torch.device, *, name: str) -> None:
    """Raises OutOfMemory where the weights do not fit; it says what would."""
    room = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().total
    network = empty_network(config, where=name)
    needed = weight_bytes(network, numbers)
    if needed <= room:
        return
    others = [Numbers(torch.bfloat16), *(Numbers(torch.bfloat16, kind) for kind in (*FORMATS, OFFLOAD))]
    sizes = {other.flag: weight_bytes(network, other) for other in others}
    fitting = [f"{flag} ({size / 1e9:.1f} GB)" for flag, size in sizes.items() if size <= room]
    whose = "GPU's" if device.type == "cuda" else "machine's"
    raise OutOfMemory(
        f"a base model is held in memory ({numbers}), and this one is too large for the {whose} memory",
        where=name,
        expected=f"at most {room / 1e9:.1f} GB",
        got=f"{needed / 1e9:.1f} GB",
        do=f"try {' or '.join(fitting[:2])}" if fitting else "choose a smaller model",
    )
