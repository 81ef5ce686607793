"""Soft prompts as NeMo, Petals and scripts save them: archives, pickled modules, prompts for every layer."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from sordino import formats
from tests.formats.makers import nemo, pickled, saved, tensor
from tests.formats.refusals import both_refuse, refusal
from tests.prompt_files import matrix

SAVES = {"zip": saved, "stream": lambda value: saved(value, as_zip=False)}


def embedding(seed: int = 0, width: int = 8) -> nn.Embedding:
    made = nn.Embedding(4, width)
    made.weight = nn.Parameter(torch.from_numpy(matrix(seed, 4, width)))
    return made


class Own(nn.Module):
    """Somebody's class, which only their program has."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = embedding()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_nemo_files_are_read(tmp_path: Path, mode: Literal["w", "w:gz"]) -> None:
    """NeMo saves p-tuning as .nemo, a tar, and people have no other file of it."""
    path = nemo(tmp_path / "keeper.nemo", mode=mode)
    assert formats.detect(path) == "nemo"
    assert np.array_equal(formats.read(path).matrix, matrix())
    assert formats.read(path).metadata.name == "keeper"
    several = nemo(tmp_path / "several.nemo", tasks=2, mode=mode)
    both_refuse(several, "several soft prompts", "task1")
    assert np.array_equal(formats.read(several, index=1).matrix, matrix(1))


def test_nemo_files_of_something_else_are_refused(tmp_path: Path) -> None:
    def archive(**members: bytes) -> Path:
        with tarfile.open(tmp_path / "v.nemo", "w") as file:
            for name, content in members.items():
                info = tarfile.TarInfo(name.replace("_dot_", "."))
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
        return tmp_path / "v.nemo"

    both_refuse(archive(a=b"1"), "no model_weights.ckpt", "got a")
    both_refuse(archive(model_weights_dot_ckpt=saved({"model.weight": tensor()})), "no virtual tokens", "torch.save")
    both_refuse(archive(**{f"m{number}": b"" for number in range(200)}), "no model_weights.ckpt")
    good = nemo(tmp_path / "good.nemo").read_bytes()
    (tmp_path / "v.nemo").write_bytes(good[:1500])
    both_refuse(tmp_path / "v.nemo")
    packed = bytearray(gzip.compress(good))
    packed[len(packed) // 2] ^= 1
    (tmp_path / "v.nemo").write_bytes(packed)
    both_refuse(tmp_path / "v.nemo")
    (tmp_path / "v.nemo").write_bytes(gzip.compress(bytes(64 << 20)))
    both_refuse(tmp_path / "v.nemo", "bomb")


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda module: module,
        lambda module: {"prompt": module, "step": 3},
        lambda module: nn.ModuleList([module]),
        lambda module: nn.ModuleDict({"a": module}),
        lambda module: nn.ParameterList([module.weight]),
    ],
)
def test_pickled_embeddings_are_read(tmp_path: Path, save: Any, wrap: Any) -> None:
    """Petals and scripts save the module instead of its weight."""
    path = tmp_path / "prompts.bin"
    path.write_bytes(save(wrap(embedding())))
    assert formats.detect(path) == "torch"
    assert np.array_equal(formats.read(path).matrix, matrix())


@pytest.mark.parametrize("value", [Own(), nn.Linear(8, 4), {"a": [Own()]}])
def test_other_classes_are_refused_with_a_way_on(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "prompts.bin"
    for data in (saved(value), pickled(value)):
        path.write_bytes(data)
        both_refuse(path, "no tensor needs", "torch.save(prompt.weight")


def test_deep_prompts_are_refused_and_named(tmp_path: Path) -> None:
    """Petals' deep prompt tuning: the first layer's vectors and those of all others, which only work together."""
    path = tmp_path / "deep.bin"
    for value in (
        (embedding(), embedding(1, 24)),
        [tensor(), torch.ones(4, 24)],
        {"prompt_embeddings.weight": tensor(), "intermediate_prompt_embeddings.weight": torch.ones(4, 24)},
    ):
        path.write_bytes(saved(value))
        both_refuse(path, "deep prompts", "tuning_mode ptune", "--index 0")
        assert np.array_equal(formats.read(path, index=0).matrix, matrix())
    path.write_bytes(saved([tensor(), tensor(1)]))
    assert "several soft prompts" in refusal(path)
