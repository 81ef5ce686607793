"""Base models by the memory of a machine: as docs/models.md says for GPUs of these sizes."""

from __future__ import annotations

import pytest

from sordino.models import suited
from sordino.models.catalogue import catalogue
from sordino.models.suited import DeviceMemory, device_memory, suited_models, training_bytes


def found(monkeypatch: pytest.MonkeyPatch, where: str, gigabytes: float, per_parameter: int) -> dict[str, str | None]:
    size = int(gigabytes * 1e9)
    monkeypatch.setattr(suited, "device_memory", lambda: DeviceMemory(where, size, size, per_parameter))
    return {one.name: one.quantise for one in suited_models()}


def test_a_gpu_with_24_gb_takes_8_billion_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    names = found(monkeypatch, "GPU memory", 24, 2)
    assert names["meta-llama/Llama-3.1-8B-Instruct"] is None
    assert set(names) == set(catalogue())
    assert next(iter(names)) == "smollm2"


def test_a_gpu_with_16_gb_without_bfloat16_takes_them_in_4_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    names = found(monkeypatch, "GPU memory", 15.6, 4)
    assert names["Qwen/Qwen3-1.7B"] is None
    assert names["mistralai/Mistral-7B-Instruct-v0.3"] == "nf4"


def test_without_a_gpu_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = found(monkeypatch, "memory", 12.7, 4)
    assert set(names.values()) == {None}
    assert "google/gemma-3-1b-it" in names
    assert "mistralai/Mistral-7B-Instruct-v0.3" not in names


def test_where_nothing_fits_the_list_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, "GPU memory", 1, 2) == {}


def test_packing_takes_less_the_more_the_larger_a_model_is() -> None:
    shares = [training_bytes(known, 2, "nf4") / training_bytes(known, 2, None) for known in catalogue().values()]
    assert max(shares) <= 1
    assert shares[-1] < 0.6


def test_a_line_says_what_it_needs_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suited, "device_memory", lambda: DeviceMemory("GPU memory", 10**10, 10**10, 2))
    lines = {one.name: str(one) for one in suited_models()}
    assert lines["meta-llama/Llama-3.2-3B-Instruct"] == (
        "meta-llama/Llama-3.2-3B-Instruct: about 9 GB of memory, 6.4 GB to download; "
        "Llama 3.2 Community License, accept it on the Hub first"
    )
    assert "quantise='nf4'" in lines["Qwen/Qwen3-4B"]


def test_this_machine_has_memory() -> None:
    memory = device_memory()
    assert 0 < memory.free <= memory.total
    assert memory.per_parameter in (2, 4)
