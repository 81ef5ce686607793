"""llama.cpp is built once: the same machine finds its wheel again, another one does not, and a broken entry is built anew."""

from __future__ import annotations

import runpy
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sordino.engine.runners.llama_library import PACKAGE

REPOSITORY = Path(__file__).resolve().parents[2]
# Stands for `pip wheel`: writes one into the folder it is given, and counts.
BUILD = """
import sys, zipfile
with open({count!r}, "a") as count: count.write("x")
with zipfile.ZipFile(sys.argv[1] + "/sordino_llama-1-py3-none-any.whl", "w") as wheel: wheel.writestr("lib.so", b"code" * 1000)
"""


@pytest.fixture
def module() -> Any:
    return runpy.run_path(str(REPOSITORY / "native" / "llama_wheel.py"))


class Machine:
    def __init__(self, module: Any, folder: Path) -> None:
        self.module, self.entry, self.count = module, folder / "cache" / "entry", folder / "count"

    def wheel(self) -> Path:
        command = [sys.executable, "-c", BUILD.format(count=str(self.count))]
        made: Path = self.module["built"](self.entry, {"package": "llama==1"}, command, "")
        return made

    def builds(self) -> int:
        return len(self.count.read_text())


@pytest.fixture
def machine(module: Any, tmp_path: Path) -> Machine:
    return Machine(module, tmp_path)


def test_a_wheel_is_built_once(machine: Machine) -> None:
    first = machine.wheel()
    assert machine.wheel() == first
    assert machine.builds() == 1


@pytest.mark.parametrize("harm", ["cut", "changed", "empty", "gone", "no entry", "a file"])
def test_a_broken_entry_is_built_again(machine: Machine, harm: str) -> None:
    wheel = machine.wheel()
    content = wheel.read_bytes()
    if harm == "cut":
        wheel.write_bytes(content[: len(content) // 2])
    elif harm == "changed":
        wheel.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif harm == "empty":
        wheel.write_bytes(b"")
    else:
        wheel.unlink()
    if harm in ("no entry", "a file"):
        (machine.entry / "key.json").unlink()
        machine.entry.rmdir()
    if harm == "a file":
        machine.entry.write_bytes(b"")
    assert machine.wheel().read_bytes()[:4] == content[:4]
    assert machine.builds() == 2
    with zipfile.ZipFile(machine.wheel()) as archive:
        assert archive.testzip() is None


def test_a_build_that_fails_leaves_no_entry(machine: Machine) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        machine.module["built"](machine.entry, {}, [sys.executable, "-c", "raise SystemExit(1)"], "")
    assert not machine.entry.exists()
    machine.wheel()
    assert machine.builds() == 1


def test_the_key_is_of_all_that_the_wheel_depends_on(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    key_of, entry_of = module["key_of"], module["entry_of"]
    first = key_of("llama==1", "-DA=ON")
    assert entry_of(first) == entry_of(key_of("llama==1", "-DA=ON"))
    others = [key_of("llama==2", "-DA=ON"), key_of("llama==1", "-DA=OFF")]
    for name, value in {"CC": "clang", "CXXFLAGS": "-O1"}.items():
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            others.append(key_of("llama==1", "-DA=ON"))
    others += [{**first, name: "another"} for name in ("compiler", "processor", "python", "system")]
    assert len({entry_of(key) for key in [first, *others]}) == 1 + len(others)
    assert len(first["processor"]) > 3


def test_the_version_is_the_pinned_one_everywhere(module: Any) -> None:
    pinned = module["requirement"]((REPOSITORY / "constraints.txt").read_text(encoding="utf-8"))
    assert pinned == PACKAGE
    native = tomllib.loads((REPOSITORY / "native" / "pyproject.toml").read_text(encoding="utf-8"))
    assert f"xllamacpp=={native['project']['version']}" == PACKAGE
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert [line.split(";")[0] for line in project["project"]["dependencies"] if "llama" in line] == [PACKAGE]


def test_what_the_key_says_is_what_the_build_reads(module: Any) -> None:
    flags = module["key_of"]("llama==1", "-DA=ON")["flags"]
    assert all((REPOSITORY / "native" / name).read_text() in flags for name in ("CMakeLists.txt", "pyproject.toml"))
