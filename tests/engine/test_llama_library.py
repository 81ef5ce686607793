"""The library of llama.cpp: what another one would do without a word is refused by name."""

from __future__ import annotations

import ctypes
import logging
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sordino.engine.runners import llama_library
from sordino.engine.runners.llama_context import LlamaContext
from sordino.engine.runners.llama_library import ContextParams, declared, library, library_file, why_not
from sordino.engine.runners.llama_room import CellBudget
from sordino.errors import MissingExtra, ModelError
from tests.tiny_models import tiny_gguf


@pytest.fixture
def fresh() -> Any:
    """A handle of its own: a function's declaration belongs to the handle."""
    return ctypes.CDLL(str(library_file()))


def without(structure: type[ctypes.Structure], *fields: str) -> type[ctypes.Structure]:
    kept = tuple(each for each in structure._fields_ if each[0] not in fields)
    return type("Another", (ctypes.Structure,), {"_fields_": kept})


def instead(monkeypatch: pytest.MonkeyPatch, structure: type[ctypes.Structure], **defaults: Any) -> None:
    """Declare the context's parameters in another way."""
    model, (name, _, ours) = llama_library.STRUCTURES
    monkeypatch.setattr(llama_library, "STRUCTURES", (model, (name, structure, {**ours, **defaults})))


def test_the_installed_one_is_ours() -> None:
    assert why_not() == ""
    assert library() is library()


def test_another_version_is_refused(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_library, "VERSION", ("0.5.0-dev", "0.25.3"))
    with pytest.raises(ModelError, match=r"expected llama.cpp 0\.5\.0-dev with ggml 0\.25\.3, got llama.cpp 0\.6"):
        declared(fresh, where="llama.so")


def test_a_structure_of_another_size_is_refused(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As llama-cpp-python 0.3.36 declares it, which is 8 bytes shorter: every field after it would be another."""
    instead(monkeypatch, without(ContextParams, "moe_cache_size"))
    with pytest.raises(ModelError, match="llama_context_default_params"):
        declared(fresh, where="llama.so")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the size can be seen on x86-64 only")
def test_a_structure_that_lacks_its_last_field_is_refused(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which shows in no default value."""
    instead(monkeypatch, without(ContextParams, "ctx_other"))
    with pytest.raises(ModelError, match="expected 160 bytes from llama_context_default_params, got 168"):
        declared(fresh, where="llama.so")


@pytest.mark.parametrize("machine", ["x86_64", "riscv64"])
def test_fields_in_another_order_are_refused(fresh: Any, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = list(ContextParams._fields_)
    at = [name for name, _ in fields].index("n_ctx")
    fields[at], fields[at + 1] = fields[at + 1], fields[at]
    instead(monkeypatch, type("Another", (ctypes.Structure,), {"_fields_": fields}))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(ModelError, match="expected 2048 for n_batch from llama_context_default_params, got 512"):
        declared(fresh, where="llama.so")


def test_a_library_without_a_function_is_refused() -> None:
    with pytest.raises(ModelError, match="no llama_version"):
        declared(SimpleNamespace(), where="llama.so")


@pytest.fixture
def nothing_loaded() -> Any:
    library.cache_clear()
    yield
    library.cache_clear()


@pytest.mark.usefixtures("nothing_loaded")
def test_where_there_is_none_or_it_cannot_be_loaded_the_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_library, "PLACES", (("no_such_package_of_ours", ("*.so",)),))
    with pytest.raises(MissingExtra, match=r"not installed.*pip install xllamacpp=="):
        library()
    broken = tmp_path / "libllama.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(llama_library, "library_file", lambda: broken)
    assert "cannot be loaded" in why_not()


@pytest.mark.usefixtures("nothing_loaded")
def test_a_processor_that_lacks_its_instructions_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first product would end the process."""
    import torch

    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr(llama_library, "library_file", lambda: Path("/packages/xllamacpp/xllamacpp.abi3.so"))
    assert "lacks AVX2" in why_not()


def test_nothing_that_it_says_reaches_the_terminal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A context longer than the model's is meant: rows have room for copies of a held prompt."""
    caplog.set_level(logging.INFO, "sordino.llama")
    path = tiny_gguf(tmp_path / "tiny.gguf")
    LlamaContext(path, CellBudget(1 << 28, 8192, 2, row_cells=8192), batch=64, threads=1).close()
    assert any("n_ctx_train" in record.message for record in caplog.records)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
