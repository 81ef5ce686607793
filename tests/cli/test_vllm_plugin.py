"""Soft prompts in a server that vLLM runs; with vLLM itself in tests/programs."""

from __future__ import annotations

from argparse import Namespace

import pytest

from sordino.cli.vllm_plugin import _access_of
from sordino.errors import ConfigError


def test_a_public_server_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("VLLM_API_KEY", "SORDINO_INSECURE"):
        monkeypatch.delenv(variable, raising=False)
    for host in (None, "0.0.0.0"):
        with pytest.raises(ConfigError, match="no key is required"):
            _access_of(Namespace(host=host, api_key=None))
    assert _access_of(Namespace(host="127.0.0.1", api_key=None)).api_key is None
    assert _access_of(Namespace(host=None, api_key=["k"])).api_key == "k"
    with pytest.raises(ConfigError, match="one key"):
        _access_of(Namespace(host=None, api_key=["k", "l"]))
    monkeypatch.setenv("VLLM_API_KEY", "m")
    assert _access_of(Namespace(host=None, api_key=None)).api_key == "m"
    monkeypatch.delenv("VLLM_API_KEY")
    monkeypatch.setenv("SORDINO_INSECURE", "1")
    assert _access_of(Namespace(host=None, api_key=None)).api_key is None
