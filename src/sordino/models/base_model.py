"""A base model: a frozen network, its tokenizer, and what soft prompts need to know about both.

Shape key: D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast, get_args

import psutil
import torch
from torch import Tensor

from sordino.errors import ConfigError, OutOfMemory
from sordino.models import files
from sordino.models.bundled import DEFAULT_MODEL
from sordino.models.description import DescribedModel, facts_of
from sordino.models.files import Notify, silent
from sordino.models.loading import check_readable, read_config, read_network, read_tokenizer
from sordino.models.names import Dtype
from sordino.models.network_size import empty_network
from sordino.models.quantised import ParameterCounts
from sordino.models.weight_formats import FORMATS, OFFLOAD, Format, check_installed
from sordino.prompts.encoder_decoders import OnlyDecoders, refused
from sordino.prompts.soft_prompt import BaseRef

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


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


DTYPES: dict[Dtype, torch.dtype] = {name: getattr(torch, name) for name in get_args(Dtype)}
_RMS_ROWS = 8192


@dataclass(frozen=True, eq=False)
class BaseModel(DescribedModel):
    """A frozen network and its tokenizer. Made by `load` or `from_parts`.

    network: in eval mode, without gradients. embedding_rms: of all elements of the input embeddings, with Gemma's sqrt(d).
    """

    network: PreTrainedModel
    embedding_rms: float
    device: torch.device
    dtype: torch.dtype

    @property
    def ref(self) -> BaseRef:
        return replace(super().ref, embedding_rms=self.embedding_rms)

    def embed(self, ids: Tensor) -> Tensor:
        """inputs_embeds [..., D], in the model's dtype, as the network itself would compute them from `ids` [...]."""
        embeddings = self.network.get_input_embeddings()
        return cast(Tensor, embeddings(ids))


def load(
    name: str = DEFAULT_MODEL,
    *,
    dtype: str | None = None,
    device: str | None = None,
    quantise: str | None = None,
    only_decoders: OnlyDecoders | None = None,
    notify: Notify = silent,
) -> BaseModel:
    """Load a base model by bundled name, folder, .gguf file or hub id; downloaded and converted first if necessary.

    dtype: "float32", "bfloat16" or "float16"; by default float32, on CUDA bfloat16 where the GPU has it. device: "cpu", "cuda",
    "cuda:N" or "mps"; by default a GPU where there is one. quantise: "int8", "nf4" or "int4", the format of its linear layers, or
    "offload": they stay on the disk. The rest is then by default bfloat16 where the processor multiplies it. only_decoders: what
    the model is for, where encoder-decoders cannot do it. Raises ModelError, ConfigError (dtype, device, quantise, an
    encoder-decoder), MissingExtra, StorageError, OutOfMemory.
    """
    kind = choose_format(quantise)
    place = choose_device(device)
    number = choose_dtype(training_dtype(dtype, device) if kind else dtype, place)
    source = files.resolve(name)
    prepared = files.prepare(source, notify=notify)
    config = read_config(prepared.folder)
    check_readable(config, where=name)
    if only_decoders is not None and config.is_encoder_decoder:
        raise refused(only_decoders, name)
    check_room(config, Numbers(number, kind), place, name=name)
    tokenizer = read_tokenizer(prepared.folder)
    network = read_network(prepared.folder, dtype=number, device=place, quantise=kind)
    base = from_parts(network, tokenizer, name=name, model_id=source.id, fingerprint=prepared.fingerprint)
    return replace(base, quantise=kind)


def from_parts(
    network: PreTrainedModel,
    tokenizer: Any,
    *,
    name: str,
    model_id: str = "",
    fingerprint: str = "",
    freeze: bool = True,
) -> BaseModel:
    """A base model from a network and a tokenizer in memory.

    freeze: remove the parameters' gradients and set eval mode, which everything but encoding needs.
    """
    if freeze:
        network.eval().requires_grad_(False)
    weight_VD = cast(Tensor, network.get_input_embeddings().weight)
    return BaseModel(
        name=name,
        id=model_id or name,
        network=network,
        tokenizer=tokenizer,
        embedding_rms=_embedding_rms(network, int(weight_VD.shape[0])),
        fingerprint=fingerprint,
        device=weight_VD.device,
        dtype=weight_VD.dtype,
        **facts_of(network, network.generation_config, tokenizer),
    )


def choose_device(name: str | None) -> torch.device:
    """The device of a name, by default a GPU if there is one. Raises ConfigError for an unknown or missing device."""
    if name is None:
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    kind, _, number = name.partition(":")
    if (
        kind not in ("cpu", "cuda", "mps")
        or (number and not (kind == "cuda" and number.isdecimal()))
        or name.endswith(":")
    ):
        raise ConfigError("unknown", where="--device", expected="cpu, cuda, cuda:N or mps", got=name)
    available = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if int(number or 0) >= available[kind]:
        raise ConfigError(
            "this machine, or the torch installed on it, has no such device",
            where="--device",
            expected=" or ".join(k for k, count in available.items() if count),
            got=name,
            do="leave it out, or see `sordino doctor`",
        )
    return torch.device(name)


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The number type of a name, by default the device's best. Raises ConfigError."""
    if name is None:
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    number = next((number for known, number in DTYPES.items() if known == name), None)
    if number is None:
        raise ConfigError("unknown number type", where="--dtype", expected=", ".join(DTYPES), got=name)
    return number


def choose_format(name: str | None) -> Format | None:
    """The format of linear layers of a name. Raises ConfigError, MissingExtra."""
    if name is None:
        return None
    kind: Format | None = next((one for one in (*FORMATS, OFFLOAD) if one == name), None)
    if kind is None:
        raise ConfigError("unknown format", where="--quantise", expected=", ".join(FORMATS), got=name)
    check_installed(kind)
    return kind


def training_dtype(name: str | None, device: str | None) -> Dtype:
    """The name of the number type to train on a base model in: as given; by default bfloat16 on a processor that multiplies it in
    hardware, else the device's best. Whatever trains asks here. Raises ConfigError.
    """
    place = choose_device(device)
    if name is None and place.type == "cpu" and multiplies_bfloat16():
        return "bfloat16"
    chosen = choose_dtype(name, place)
    return next(known for known, number in DTYPES.items() if number == chosen)


def multiplies_bfloat16() -> bool:
    """Whether the processor multiplies matrices of bfloat16 in hardware: AVX512-BF16 (AMD from Zen 4 on) or AMX (Intel's Xeons).

    Not timed, so that one machine always answers the same.
    """
    # Older versions of torch do not say.
    has = getattr(torch.cpu, "get_capabilities", dict[str, bool])()
    return torch.backends.mkldnn.is_available() and bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def _embedding_rms(network: PreTrainedModel, vocab_size: int) -> float:
    """Root mean square of the whole vocabulary's inputs_embeds, a few rows at a time."""
    embeddings = network.get_input_embeddings()
    total, count = 0.0, 0
    with torch.no_grad():
        for begin in range(0, vocab_size, _RMS_ROWS):
            rows = torch.arange(begin, min(begin + _RMS_ROWS, vocab_size), device=network.device)
            values = embeddings(rows).float()
            total += torch.linalg.vector_norm(values, dtype=torch.float32).item() ** 2
            count += values.numel()
    return float((total / count) ** 0.5)
