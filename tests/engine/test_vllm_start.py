"""`--runner vllm` where vLLM is not there, and what is refused before it is looked for."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sordino.engine.config import EngineOptions
from sordino.engine.runners import build
from sordino.engine.vllm import start
from sordino.engine.vllm.process import SERVER_PID
from sordino.errors import ConfigError, MissingExtra
from sordino.models import files
from sordino.models.base_model import load
from sordino.models.description import describe_folder
from tests.tiny_models import tiny_base


def test_without_vllm_the_error_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(start, "find_spec", lambda name: None if name == "vllm" else real(name))
    with (
        pytest.raises(MissingExtra, match=r"pip install 'sordino\[vllm\]'"),
        start.running("smollm2", EngineOptions(runner="vllm")),
    ):
        raise AssertionError


def test_flags_for_vllm_need_the_runner() -> None:
    with pytest.raises(ConfigError, match="--vllm"):
        EngineOptions(vllm=("tensor-parallel-size=2",))


def test_what_is_for_pytorch_is_not_for_vllm() -> None:
    options = EngineOptions(runner="vllm")
    with (
        pytest.raises(ConfigError, match="--device is for PyTorch"),
        build.running("smollm2", options, lambda: tiny_base("llama"), only_torch="--device is for PyTorch"),
    ):
        raise AssertionError


def test_generate_does_not_start_vllm() -> None:
    with pytest.raises(ConfigError, match="sordino serve"):
        build.llama_cpp_file("smollm2", "vllm", only_torch="", notify=lambda line: None)


def test_a_folder_is_described_without_its_weights(tmp_path: Path) -> None:
    base = tiny_base("gemma3")
    base.network.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    described, found = describe_folder(files.resolve(str(tmp_path)))
    loaded = load(str(tmp_path))
    assert found == tmp_path
    for name in ("id", "d_model", "n_layers", "vocab_size", "context_length", "fingerprint", "bos_ids", "stop_ids"):
        assert getattr(described, name) == getattr(loaded, name), name
    assert described.kv_shape == loaded.kv_shape


def test_processes_of_vllm_leave_the_servers_terminal_and_no_other() -> None:
    leave = "from sordino.engine.vllm.process import leave_terminal; leave_terminal()"
    code = f"import os; {leave}; print(os.getpgid(0) == os.getpid())"
    for server, left in ((str(os.getpid()), "True"), ("", "False")):
        env = {**os.environ, SERVER_PID: server}
        assert subprocess.check_output([sys.executable, "-c", code], env=env, text=True).strip() == left
