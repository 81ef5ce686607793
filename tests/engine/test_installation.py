"""What is found amiss with an installation, and what is said of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sordino.engine import installation
from sordino.engine.runners import llama_library
from sordino.library.library import Library


def test_a_torch_that_cannot_be_loaded_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (finding,) = installation.torch_and_gpu()
    assert finding.state == "bad"
    assert "pip install" in finding.do


def test_the_report_is_whole_where_torch_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    # As in a new process.
    monkeypatch.setattr(llama_library, "library", llama_library.library.__wrapped__)
    found = {finding.what: finding.state for finding in installation.examine(Library([tmp_path]))}
    assert (found["torch"], found["llama.cpp"]) == ("bad", "note")


def test_extras_are_read_from_the_package_metadata() -> None:
    requirements = [
        "click>=8.4",
        "pytest>=8; extra == 'dev'",
        'no-such-package-of-any-kind>=1; extra == "bench"',
        "numpy ; python_version > '3' and extra == 'bench'",
    ]
    bench, dev = installation.extras(requirements)
    assert (dev.what, dev.found) == ("extra dev", "installed")
    assert "not installed: no-such-package-of-any-kind" in bench.found
    assert "pip install 'sordino[bench]'" in bench.found


@pytest.mark.parametrize("free", [2**30, 2**34])
def test_little_memory_or_disk_is_noted(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Memory:
        available, total = free, 2**35

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": free}))
    assert (installation.memory().state == "note") == (free < 2**31)
    assert any(finding.what == "disk" for finding in installation.cache()) == (free < 2**31)


def test_llama_cpp_that_cannot_be_used_is_a_note_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installation.llama().state == "ok"
    monkeypatch.setattr(llama_library, "why_not", lambda: "llama.cpp is not installed; pip install it")
    assert (installation.llama().state, installation.llama().found) == (
        "note",
        "llama.cpp is not installed; pip install it",
    )
