"""Soft prompt files of every kind, most of them built by the programs that the kinds come from."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sordino import formats
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.prompt_files import matrix, npy

META = {"name": "Gothic", "author": "A. N. Other", "supported": ["Generic 6B"], "description": "Fog."}

FULL = Metadata(
    name="The Keeper",
    author="Анна",
    supported=("org/model", "org/other"),
    description='Salt, "lamps"\nand log-books.',
    base=BaseRef("org/model", "llama", 8, 30, 49152, 0.1357, "ab" * 32),
    placement="start",
    licence="CC-BY-4.0",
    tags=("sea", "log"),
    rating="general",
    created="2026-01-02",
    training={"steps": 300, "learning_rate": 0.3, "init": "an excerpt", "nested": {"b": [1, None], "a": True}},
    heldout={"nll": 3.25, "baselines": {"none": 4.5}},
    samples=({"prompt": "Once", "with": "the lamp", "without": "there was"},),
)


def prompt(metadata: Metadata = FULL, seed: int = 0) -> SoftPrompt:
    return SoftPrompt(matrix(seed), metadata)


def kobold(path: Path, tensor: bytes | None = None, meta: Any = META, method: int = zipfile.ZIP_STORED) -> Path:
    """A zip as KoboldAI's tools make it: tensor.npy compressed by `method`, meta.json stored."""
    with zipfile.ZipFile(path, "w", compression=method) as archive:
        with archive.open("tensor.npy", "w", force_zip64=True) as member:
            member.write(npy(matrix()) if tensor is None else tensor)
        if meta is not None:
            content = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
            archive.writestr(zipfile.ZipInfo("meta.json"), content, compress_type=zipfile.ZIP_STORED)
    return path


def zipped(path: Path, members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression=method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy_bytes(descr: str, shape: object, data: bytes, *, fortran: object = False, version: int = 1) -> bytes:
    """An .npy with any claim in its header."""
    text = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def bfloat16(values: np.ndarray) -> bytes:
    """The upper halves of float32s: exact where the values are."""
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def saved(value: Any, *, as_zip: bool = True) -> bytes:
    """What torch.save makes."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=as_zip)
    return stream.getvalue()


def pickled(value: Any, protocol: int = 4) -> bytes:
    """What pickle.dumps makes of a tensor: how mkultra stores one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pickle.dumps(value, protocol=protocol)


def mkultra(path: Path, pickle_bytes: bytes, metadata: Any = None) -> Path:
    said = {"name": "Gothic", "uuid": "u", "description": "Fog.", "epoch": 1623343566.25}
    content = {"metadata": said if metadata is None else metadata, "tensor": base64.b64encode(pickle_bytes).decode()}
    path.write_text(json.dumps(content))
    return path


def nemo(path: Path, *, tasks: int = 1, mode: Literal["w", "w:gz"] = "w") -> Path:
    """What NeMo's prompt learning saves: a table of virtual tokens a task, and a configuration."""
    table = {f"prompt_table.task{k}.prompt_embeddings.weight": tensor(k) for k in range(tasks)}
    members = {
        "model_config.yaml": b"virtual_prompt_style: p-tuning\n",
        "model_weights.ckpt": saved({"prompt_table": table}),
    }
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tensor(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(matrix(seed))


def one_of_each(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of a good file of every kind; all hold `matrix()`."""
    for to, name in (
        ("kobold", "native.zip"),
        ("mkultra", "m.json"),
        ("npy", "n.npy"),
        ("safetensors", "s.safetensors"),
    ):
        formats.write(prompt(), folder / name, to=to)
        yield name, folder / name
    formats.write(prompt(), folder / "peft", to="peft")
    yield "peft", folder / "peft"
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield f"kobold {method}", kobold(folder / f"kobold-{method}.zip", method=method)
    inner = kobold(folder / "inner.zip", method=zipfile.ZIP_LZMA).read_bytes()
    yield "zip in zip", zipped(folder / "outer.zip", {"inner.zip": inner}, zipfile.ZIP_DEFLATED)
    for name, content in {
        "new.pt": saved(tensor()),
        "old.pt": saved(tensor(), as_zip=False),
        "state.bin": saved(OrderedDict({"s_wte.learned_embedding": tensor()})),
        "bare.pkl": pickled(tensor()),
    }.items():
        (folder / name).write_bytes(content)
        yield name, folder / name
    yield "nemo", nemo(folder / "n.nemo")
    yield "mkultra's own", mkultra(folder / "real.json", pickled(tensor()))
