"""Quantised base models: the formats, what they load from, and what they take."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from sordino.errors import ConfigError, MissingExtra, OutOfMemory
from sordino.forward.prefix import has_fused_layers
from sordino.models import base_model, nf4, weight_formats
from sordino.models.base_model import Numbers, check_room, weight_bytes
from sordino.models.network_size import empty_network
from sordino.models.nf4 import bitsandbytes
from sordino.models.quantised import ParameterCounts, QuantisedLinear, quantise
from sordino.models.weight_formats import FORMATS, Format, PackedWeight, nibbles_of, numbers_of, pack, packed_bytes
from tests.tiny_models import FAMILIES, saved_tiny, tiny

# Of normally distributed weights, in the norm.
ERRORS: dict[Format, float] = {"int8": 0.009, "nf4": 0.1, "int4": 0.085}
SHAPES = [(96, 64), (128, 192), (64, 576)]


pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved_tiny(tmp_path / "m", "llama")


def weight_of(shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) / shape[1] ** 0.5


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_packed_weight_is_near_and_takes_the_bytes_that_were_reckoned(
    kind: Format, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight_FD = weight_of(shape)
    packed: Any = pack(kind, weight_FD, dtype)
    dequantised = packed.dequantised(dtype)
    assert dequantised.dtype == dtype
    assert dequantised.shape == shape
    assert off(dequantised, weight_FD) < ERRORS[kind]
    held = sum(buffer.numel() * buffer.element_size() for buffer in packed.buffers())
    # The table of NF4 is the same in all sizes.
    assert held == pytest.approx(packed_bytes(kind, *shape), abs=2048 + weight_FD.numel() // 32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 16, 60, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_of_few_rows_multiplies_by_the_dequantised_weight(
    kind: Format, shape: tuple[int, int], rows: int, dtype: torch.dtype
) -> None:
    packed: Any = pack(kind, weight_of(shape), dtype)
    x_ND = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(1)).to(dtype)
    found_NF = packed.times_few(x_ND)
    if found_NF is None:
        assert rows > 60 or not has_kernel(kind, shape[0], dtype)
        return
    assert found_NF.dtype == dtype
    exact_NF = x_ND.double() @ packed.dequantised(torch.float32).double().t()
    # As far as bfloat16 is from a product that is rounded twice: before and after.
    assert off(found_NF, exact_NF) < 4e-3


def has_kernel(kind: Format, outputs: int, dtype: torch.dtype) -> bool:
    """Whether PyTorch or bitsandbytes has one for this machine's processor."""
    vectors = torch.backends.cpu.get_cpu_capability()
    if kind == "nf4":
        return dtype == torch.bfloat16 and bitsandbytes().has_avx512bf16()
    blocks = {"AVX512": 64, "AVX2": 32}.get(vectors, 0) if kind == "int4" else 1
    return sys.platform.startswith("linux") and blocks > 0 and outputs % blocks == 0


@pytest.mark.parametrize("block", [32, 64])
def test_nibbles_come_back(block: int) -> None:
    numbers_FD = torch.randint(0, 16, (2 * block, 48), dtype=torch.uint8)
    assert torch.equal(numbers_of(nibbles_of(numbers_FD, block), block, (2 * block, 48)), numbers_FD)


@pytest.mark.parametrize("kind", FORMATS)
def test_weights_that_are_all_alike_are_packed(kind: Format) -> None:
    for value in (0.0, 0.5, -3.0):
        packed: Any = pack(kind, torch.full((64, 64), value), torch.bfloat16)
        dequantised = packed.dequantised(torch.bfloat16)
        assert torch.isfinite(dequantised).all()
        assert (dequantised.float() - value).abs().max() <= 0.02 * abs(value)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_is_packed_but_the_head(family: str, kind: Format) -> None:
    network = quantise(tiny(family, dtype=torch.float32), kind, torch.bfloat16, torch.device("cpu"))
    layers = [module for module in network.base_model.modules() if type(module).__name__ in ("Linear", "Conv1D")]
    # int4 takes blocks of 32 outputs.
    assert not layers or (kind == "int4" and {layer.out_features for layer in layers} == {16})
    head: Any = network.get_output_embeddings()
    assert type(head) is nn.Linear
    assert head.weight.dtype == torch.bfloat16
    assert network.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in network.parameters())
    # Positions are computed in float32 in every number type.
    for name, buffer in network.named_buffers():
        assert "inv_freq" not in name or buffer.dtype == torch.float32
    assert not has_fused_layers(network)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_are_those_of_the_dequantised_weights(family: str, kind: Format) -> None:
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-3)):
        network = quantise(tiny(family, dtype=torch.float32), kind, dtype, torch.device("cpu"))
        plain = dequantised(tiny(family, dtype=torch.float32), network, dtype)
        ids = torch.arange(5, 45)[None]
        found, expected = (gradient(each, ids) for each in (network, plain))
        assert off(found[0], expected[0]) < tolerance
        assert off(found[1], expected[1]) < tolerance


def dequantised(network: Any, packed: Any, dtype: torch.dtype) -> Any:
    """`network` with the weights that `packed` multiplies by."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    for name, module in packed.named_modules():
        if type(module) is QuantisedLinear:
            layer = network.get_submodule(name)
            weight_FD = module.packed.dequantised(layer.weight.dtype)
            layer.weight.data = weight_FD if type(layer) is nn.Linear else weight_FD.t().contiguous()
    return network


def gradient(network: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    embeds = network.get_input_embeddings()(ids).detach().requires_grad_()
    logits = network(inputs_embeds=embeds).logits
    nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:]).backward()
    assert embeds.grad is not None
    return logits.detach(), embeds.grad


def test_one_row_that_asks_for_a_gradient_gets_it() -> None:
    """bitsandbytes' product for one row has none, silently."""
    for kind in FORMATS:
        layer = QuantisedLinear(pack(kind, weight_of((64, 64)), torch.bfloat16), None)
        x = torch.ones(1, 64, dtype=torch.bfloat16, requires_grad=True)
        layer(x).sum().backward()
        packed: Any = layer.packed
        assert x.grad is not None
        assert off(x.grad[0], packed.dequantised(torch.bfloat16).float().sum(0)) < 0.01


# Loading


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("family", ["llama", "gptj", "gpt2"])
def test_a_quantised_model_is_the_same_base_model(tmp_path: Path, family: str, kind: Format) -> None:
    path = str(saved_tiny(tmp_path / "m", family))
    full = base_model.load(path, device="cpu", dtype="float32")
    base = base_model.load(path, device="cpu", quantise=kind)
    assert (base.quantise, full.quantise) == (kind, None)
    assert base.fingerprint == full.fingerprint
    assert base.ref.embedding_rms == pytest.approx(full.ref.embedding_rms, rel=1e-3)
    assert base.dtype == (torch.bfloat16 if base_model.multiplies_bfloat16() else torch.float32)
    ids = torch.arange(5, 45)[None]
    with torch.inference_mode():
        assert off(base.network(ids).logits, full.network(ids).logits) < {"int8": 0.05, "nf4": 0.8, "int4": 0.8}[kind]


def test_formats_that_there_are_not_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--quantise: unknown format; expected int8, nf4, int4, got int3"):
        base_model.load(str(folder), quantise="int3")


def test_a_missing_package_is_named_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(weight_formats, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(MissingExtra, match=r"pip install 'sordino\[quantise\]', or take --quantise int8 or int4"):
        base_model.load("nobody/has-this", quantise="nf4")


def test_bitsandbytes_fetches_no_programs() -> None:
    """It asks the package `kernels` for some of the Hub, where that is installed."""
    nf4.bitsandbytes.cache_clear()
    installed = types.ModuleType("kernels")
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name == "kernels"}
    sys.modules["kernels"] = installed
    try:
        nf4.bitsandbytes()
        assert sys.modules["kernels"] is installed
    finally:
        del sys.modules["kernels"]
        sys.modules.update(kept)


# Memory


def test_what_does_not_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    config, device = LlamaConfig(), torch.device("cpu")

    def asked(gigabytes: float, numbers: Numbers) -> str:
        monkeypatch.setattr("psutil.virtual_memory", lambda: type("", (), {"total": gigabytes * 1e9}))
        with pytest.raises(OutOfMemory) as caught:
            check_room(config, numbers, device, name="llama-7b")
        return caught.value.message

    full, four = Numbers(torch.float32), "try --quantise nf4 (4.2 GB) or --quantise int4 (4.6 GB)"
    assert asked(16, full) == (
        "llama-7b: a base model is held in memory (float32), and this one is too large for the machine's memory; "
        "expected at most 16.0 GB, got 27.0 GB; try --dtype bfloat16 (13.5 GB) or --quantise int8 (7.0 GB)"
    )
    assert asked(5, full).endswith(four)
    assert asked(5, Numbers(torch.bfloat16, "int8")).endswith(four)
    assert asked(1, Numbers(torch.bfloat16, "nf4")).endswith("try --offload (0.5 GB)")
    assert asked(0.1, Numbers(torch.bfloat16, "nf4")).endswith("choose a smaller model")


def test_a_model_without_room_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sordino.models.base_model.psutil.virtual_memory", lambda: type("", (), {"total": 1000}))
    monkeypatch.setattr(base_model, "read_network", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(OutOfMemory, match="choose a smaller model"):
        base_model.load(str(folder), device="cpu", quantise="int8")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_bytes_of_weights_are_reckoned_without_them(family: str, kind: Format) -> None:
    network = tiny(family, dtype=torch.float32)
    numbers = Numbers(torch.bfloat16, kind)
    reckoned = weight_bytes(empty_network(network.config, where=family), numbers)
    assert reckoned == weight_bytes(network, numbers)
    shapes = ParameterCounts.of(network, kind).linear
    packed = quantise(network, kind, torch.bfloat16, torch.device("cpu"))
    held = sum(p.numel() * p.element_size() for p in packed.parameters())
    held += sum(packed_bytes(kind, *shape) for shape in shapes)
    assert held == reckoned
    assert json.dumps(shapes)


# Layers that stay on the disk


@pytest.mark.parametrize("family", ["llama", "gptj", "gpt2"])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_layers_on_the_disk_give_the_same_outputs_and_gradients(
    tmp_path: Path, family: str, stored: torch.dtype
) -> None:
    saved_tiny(tmp_path / "m", family, dtype=stored)
    ids = torch.arange(5, 45)[None]
    bases = [
        base_model.load(str(tmp_path / "m"), device="cpu", dtype="bfloat16", quantise=how) for how in ("offload", None)
    ]
    assert [base.quantise for base in bases] == ["offload", None]
    assert bases[0].fingerprint == bases[1].fingerprint
    layers = [module.packed for module in bases[0].network.modules() if type(module) is QuantisedLinear]
    assert layers
    assert not any(list(layer.buffers()) for layer in layers)
    (found, expected) = (gradient(base.network, ids) for base in bases)
    assert off(found[0], expected[0]) < 1e-3
    assert off(found[1], expected[1]) < 1e-3


def test_packed_weights_are_what_the_protocol_says() -> None:
    for kind in FORMATS:
        packed: PackedWeight = pack(kind, weight_of((64, 64)), torch.bfloat16)  # type: ignore[assignment]
        assert packed.dequantised(torch.float32).shape == (64, 64)
