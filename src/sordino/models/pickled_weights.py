"""Pickled weights (`pytorch_model.bin`, whole or in shards) as safetensors, converted once and kept in the cache.

A pickle is a program. `pickle_process` reads it in a process of its own, with torch's restricted unpickler and limits on memory and
time, and writes safetensors; this process only ever reads those. The converted folder also holds the model's configuration and
tokenizer, so that it is a whole model for transformers. Its name is a hash of the content: a model that moved is found again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.errors import ModelError
from sordino.models import fingerprint
from sordino.models.cache import build_once, check_disk, check_memory, converted_folder, sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Files of a model besides its weights.
_SETTINGS = (".json", ".txt", ".model", ".jinja", ".tiktoken")
# The slowest disk that is worth waiting for, and the time to start a process.
_BYTES_PER_SECOND, _SECONDS = 5_000_000, 120


def are_pickled(weights: Sequence[Path]) -> bool:
    """Whether these, of `fingerprint.weight_files`, are pickles."""
    return any(path.suffix != ".safetensors" for path in weights)


def converted(
    folder: Path, weights: Sequence[Path], config: PreTrainedConfig, *, name: str, notify: Callable[[str], None]
) -> Path:
    """The folder with the same model in safetensors. Several processes may ask at once: one converts, the others wait.

    name: the user's, for messages.
    Raises ModelError (hostile, broken, of another kind), StorageError, OutOfMemory.
    """
    settings = sorted(p for p in folder.iterdir() if p.suffix in _SETTINGS and ".index." not in p.name and p.is_file())

    def content() -> str:
        lines = [[path.name, sha256_of(path)] for path in (*weights, *settings)]
        return hashlib.sha256(json.dumps(lines).encode()).hexdigest()

    identity = fingerprint.cached([*weights, *settings], content)
    target = converted_folder(identity)

    def build(temporary: Path) -> int:
        size = sum(path.stat().st_size for path in weights)
        check_disk(size)
        for path in weights:
            if not zipfile.is_zipfile(path):
                check_memory(path.stat().st_size, name, purpose="weights of before torch 1.6 are read whole")
        notify(f"converting the pickled weights of {name} to safetensors ({size / 1e9:.1f} GB, once)")
        for path in settings:
            shutil.copyfile(path, temporary / path.name)
        _run(weights, temporary, _tied(config), seconds=_SECONDS + size / _BYTES_PER_SECOND)
        return sum(
            fingerprint.n_parameters(fingerprint.safetensors_tensors(path))
            for path in fingerprint.weight_files(temporary)
        )

    build_once(target, identity, build)
    return target


def _tied(config: PreTrainedConfig) -> dict[str, str]:
    """The names that the family writes once for two: the second name, then the first."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    mappings: Any = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING)
    network = next((mapping[type(config)] for mapping in mappings if type(config) in mapping), None)
    names = getattr(network, "_tied_weights_keys", None)
    return dict(names) if isinstance(names, dict) else {}


def _run(weights: Sequence[Path], folder: Path, tied: dict[str, str], *, seconds: float) -> None:
    """Convert in another process. Raises ModelError, OSError (the disk)."""
    task = {"files": [str(path) for path in weights], "folder": str(folder), "tied": tied}
    # -P: a file in the working directory is not a module.
    command = [sys.executable, "-P", "-m", "sordino.models.pickle_process", json.dumps(task)]
    # While this process lives, the pipe is open: when it closes, the other one ends.
    read_end, write_end = os.pipe()
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    try:
        done = subprocess.run(command, stdin=read_end, stdout=pipe, stderr=both, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise _ended(weights[0].parent, f"no end after {seconds:.0f} seconds") from None
    finally:
        os.close(read_end)
        os.close(write_end)
    if done.returncode:
        raise _error_of(done, folder, weights[0].parent)


def _error_of(done: subprocess.CompletedProcess[bytes], folder: Path, model: Path) -> ModelError | OSError:
    """What the process reported in its last line."""
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        found = {}
    if not isinstance(found, dict) or not found:
        return _ended(model, f"exit code {done.returncode}: {done.stdout[-200:].decode(errors='replace')}")
    if "errno" in found:
        return OSError(found["errno"], found["what"], str(folder))
    return ModelError(**found)


def _ended(model: Path, why: str) -> ModelError:
    return ModelError(
        "the process that reads its pickled weights was ended",
        where=model,
        got=why,
        do="fetch the model again, or take one with safetensors weights",
    )
