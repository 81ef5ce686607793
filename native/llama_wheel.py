"""llama.cpp, built once on a machine: its wheel is kept in the user's cache and installed from there.

    python native/llama_wheel.py install   build the wheel into the cache, if it is not there, and install it into this Python
    python native/llama_wheel.py key       print what the wheel depends on, to find out why it is built again

The source is that of the prebuilt library, xllamacpp's; the package is `sordino_llama`, which Sordino takes first. A wheel belongs
to one version, Python, compiler, set of flags and processor: it is built for the processor that builds it. An entry that is broken
is built again. CMAKE_ARGS=... adds to the flags, as -DGGML_CUDA=ON.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import platformdirs
from filelock import FileLock

HERE = Path(__file__).resolve().parent
CONSTRAINTS = HERE.parent / "constraints.txt"
PACKAGE = "xllamacpp"
# Where llama.cpp is in its source.
SOURCE = "thirdparty/llama.cpp"
# llama.cpp's AMX kernels, as GCC compiles them, crash the process (github.com/ggml-org/llama.cpp/pull/26954).
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
# The variables that change what CMake and the compiler build.
BUILD_VARIABLES = ("CMAKE_ARGS", "CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CMAKE_GENERATOR")


def requirement(constraints: str) -> str:
    """The pinned version."""
    return next(line for line in constraints.splitlines() if line.lower().replace("-", "_").startswith(f"{PACKAGE}=="))


def cmake_args() -> str:
    """The user's, then ours, with AMX off if the compiler has it."""
    amx = subprocess.run([compiler(), *NO_AMX.split(), "-E", "-x", "c++", os.devnull], capture_output=True, check=False)
    flags = [f"-DCMAKE_C_FLAGS={NO_AMX}", f"-DCMAKE_CXX_FLAGS={NO_AMX}"] if amx.returncode == 0 else []
    return " ".join(filter(None, [os.environ.get("CMAKE_ARGS", ""), *map(shlex.quote, flags)]))


def compiler() -> str:
    return os.environ.get("CXX") or "c++"


def key_of(requirement: str, args: str) -> dict[str, str]:
    """Everything that the wheel depends on."""
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=False).stdout
    return {
        "package": requirement,
        "python": f"{sys.implementation.cache_tag} {sysconfig.get_platform()}",
        "system": " ".join(platform.libc_ver()) or platform.release(),
        "compiler": (version.splitlines() or ["none"])[0],
        "flags": args
        + "".join((HERE / name).read_text(encoding="utf-8") for name in ("CMakeLists.txt", "pyproject.toml")),
        "environment": " ".join(f"{name}={os.environ.get(name, '')}" for name in BUILD_VARIABLES[1:]),
        "processor": processor(),
    }


def processor() -> str:
    """Its name and what it can do, which is what -march=native reads."""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
        said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return " ".join(said.get(name, "") for name in ("model name", "flags", "Features"))
    if sys.platform == "darwin":
        names = ("machdep.cpu.brand_string", "machdep.cpu.features", "machdep.cpu.leaf7_features")
        return subprocess.run(["sysctl", "-i", *names], capture_output=True, text=True, check=False).stdout
    return f"{platform.machine()} {platform.processor()}"


def entry_of(key: Mapping[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:24]
    return platformdirs.user_cache_path("sordino-build", appauthor=False) / digest


def whole_wheel(entry: Path) -> Path | None:
    """The wheel of a cache entry; None where there is none, or a byte of it is not what was written."""
    for wheel in sorted(entry.glob("*.whl")):
        try:
            with zipfile.ZipFile(wheel) as archive:
                if archive.testzip() is None:
                    return wheel
        except (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, zlib.error):
            continue
    return None


def built(entry: Path, key: Mapping[str, str], command: list[str], args: str) -> Path:
    """The wheel of the entry, built by `command` (which gets the folder to write to) where it is not there whole."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(entry.with_suffix(".lock")):
        if wheel := whole_wheel(entry):
            return wheel
        with tempfile.TemporaryDirectory(dir=entry.parent) as folder:
            made = Path(folder) / "entry"
            made.mkdir()
            subprocess.run([*command, str(made)], env={**os.environ, "CMAKE_ARGS": args}, check=True)
            (made / "key.json").write_text(json.dumps(dict(key), indent=1), encoding="utf-8")
            discard(entry)
            os.rename(made, entry)
        wheel = whole_wheel(entry)
        if wheel is None:
            raise SystemExit(f"error: pip built no whole wheel in {entry}")
        return wheel


def build(folder: str, pinned: str, pip: Sequence[str]) -> None:
    """Build the wheel into a folder."""
    with tempfile.TemporaryDirectory() as made:
        subprocess.run([*pip, "download", "--no-deps", "--no-binary", PACKAGE, "--dest", made, pinned], check=True)
        (packed,) = Path(made).glob("*.tar.gz")
        with tarfile.open(packed) as archive:
            archive.extractall(made, filter="data")
        (source,) = Path(made).glob(f"*/{SOURCE}")
        # pip's own cache does not distinguish flags and processors.
        command = [*pip, "wheel", "--no-cache-dir", "--no-deps", str(HERE), "--wheel-dir", folder]
        subprocess.run([*command, f"--config-settings=cmake.define.LLAMA_CPP_SOURCE={source}"], check=True)


def discard(entry: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def installed(wheel: Path, pip: list[str]) -> bool:
    """Install the wheel; whether Sordino can use it."""
    subprocess.run([*pip, "install", "--force-reinstall", "--no-deps", str(wheel)], check=True)
    subprocess.run([*pip, "install", "-c", str(CONSTRAINTS), str(wheel)], check=True)
    check = "from sordino.engine.runners.llama_library import library; library()"
    return subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def main(what: str, folder: str = "") -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", *shlex.split(os.environ.get("PIP_FLAGS", ""))]
    pinned, args = requirement(CONSTRAINTS.read_text(encoding="utf-8")), cmake_args()
    key = key_of(pinned, args)
    entry = entry_of(key)
    if what == "key":
        print(json.dumps({**key, "entry": str(entry)}, indent=1))
        return
    if what == "into":
        build(folder, pinned, pip)
        return
    command = [sys.executable, __file__, "into"]
    wheel = built(entry, key, command, args)
    if not installed(wheel, pip):
        # The system has changed since the build in a way that the key does not cover.
        discard(entry)
        if not installed(built(entry, key, command, args), pip):
            raise SystemExit("error: llama.cpp was built and cannot be used")
    print(f"installed: {wheel}")


if __name__ == "__main__":
    main(*sys.argv[1:])
