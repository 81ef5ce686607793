"""What torch.save and pickle.dumps of tensors make, read without torch."""

from __future__ import annotations

import io
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sordino import formats
from tests.formats.makers import mkultra, pickled, saved, tensor, zipped
from tests.formats.refusals import both_refuse, refusal
from tests.prompt_files import matrix

LAYOUTS = {
    "zip": saved,
    "stream": lambda value: saved(value, as_zip=False),
    "pickle 3": lambda value: pickled(value, 3),
    "pickle 4": pickled,
    "pickle 5": lambda value: pickled(value, 5),
}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    def write(value: Any) -> Path:
        path = tmp_path / "decoder.pt"
        path.write_bytes(request.param(value))
        return path

    return write


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_reads_bare_tensors_of_every_kind_of_float(save: Any, dtype: torch.dtype) -> None:
    values = tensor().to(dtype)
    path = save(values)
    assert formats.detect(path) == "torch"
    assert np.array_equal(formats.read(path).matrix, values.float().numpy())
    assert (formats.peek(path).n_tokens, formats.peek(path).d_model) == (4, 8)


def test_reads_parameters_and_tensors_that_need_gradients(save: Any) -> None:
    for value in (torch.nn.Parameter(tensor()), tensor().requires_grad_(), tensor()[None]):
        assert np.array_equal(formats.read(save(value)).matrix, matrix())


def test_reads_views(save: Any) -> None:
    whole = torch.from_numpy(matrix(0, 10, 12))
    views = [
        whole[2:5],
        whole[:, 3:9],
        whole[1:9, 4:5],
        whole.T,
        whole[3:7].T,
        whole[0:1],
        whole[::2, :],
        whole[2:3, ::3],
    ]
    for view in views:
        assert np.array_equal(formats.read(save(view)).matrix, view.numpy()), view.shape


def test_refuses_views_that_repeat_or_skip(save: Any) -> None:
    whole = torch.from_numpy(matrix(0, 10, 12))
    # An expanded row would let a small file stand for a large matrix.
    for view in (whole[:1].expand(2000, 12), whole[:, ::2], whole.as_strided((5, 4), (2, 1))):
        both_refuse(save(view), "skips or repeats")


def test_reads_state_dictionaries(save: Any) -> None:
    module = torch.nn.Module()
    module.prompt_embeddings = torch.nn.Parameter(tensor())
    module.other = torch.nn.Linear(3, 3)
    assert np.array_equal(formats.read(save(module.state_dict())).matrix, matrix())


def test_reads_the_shared_soft_embedding_beside_a_whole_model(save: Any) -> None:
    state = OrderedDict(
        {"transformer.wte.wte.weight": torch.zeros(50, 8), "transformer.wte.learned_embedding": tensor()}
    )
    state["counts"] = torch.zeros(3, 3, dtype=torch.int64)
    assert np.array_equal(formats.read(save(state)).matrix, matrix())


def test_several_prompts_in_one_tensor_need_an_index(save: Any) -> None:
    path = save({"s_wte.learned_embedding": torch.stack([tensor(seed) for seed in range(3)])})
    line = refusal(path)
    assert "--index" in line
    assert "0-2: s_wte.learned_embedding [3, 4, 8]" in line
    for index in range(3):
        assert np.array_equal(formats.read(path, index=index).matrix, matrix(index))
    assert "0 to 2" in refusal(path, index=3)


def test_nested_containers_and_other_values_are_no_obstacle(save: Any) -> None:
    value = {"epoch": 3, "name": "v", "loss": [0.5, None], "model": {"layers": [tensor(1)[0], (tensor(2),)]}}
    assert np.array_equal(formats.read(save(value)).matrix, matrix(2))
    assert "--index" in refusal(save([tensor(0), tensor(1)]))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(4, 8, dtype=torch.int64), "wrong type"),
        (torch.zeros(4, 8, dtype=torch.complex64), "wrong type"),
        (torch.zeros(4, 8, dtype=torch.bool), "wrong type"),
        (torch.zeros(8), "dimensions"),
        (torch.zeros(2048, 8), "range"),
        (torch.zeros(0, 8), "range"),
        ({}, "no tensor"),
        ({"a": torch.zeros(3), "b": torch.zeros(4)}, "no tensor in it is a soft prompt"),
    ],
)
def test_refuses_what_is_no_soft_prompt(save: Any, value: Any, words: str) -> None:
    both_refuse(save(value), words)


def test_refuses_what_is_not_finite(save: Any) -> None:
    values = tensor()
    values[1, 1] = float("nan")
    assert "not finite" in refusal(save(values))


def test_refuses_whole_modules_by_name(save: Any) -> None:
    both_refuse(save(torch.nn.Linear(8, 4)), "torch.nn.modules.linear.Linear")


def test_storages_alone_are_no_soft_prompt(tmp_path: Path) -> None:
    path = tmp_path / "v.pt"
    path.write_bytes(saved(tensor().untyped_storage()))
    both_refuse(path)


def test_people_pack_torch_files_again(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(saved(tensor()))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    path = zipped(tmp_path / "v.pt", members, zipfile.ZIP_DEFLATED)
    assert np.array_equal(formats.read(path).matrix, matrix())


def changed(members: dict[str, bytes], **changes: bytes | None) -> dict[str, bytes]:
    """A torch zip's members, those whose names end so replaced or (None) left out."""
    out = {}
    for name, content in members.items():
        key = next((end for end in changes if name.endswith(end.replace("_", "/"))), None)
        new = content if key is None else changes[key]
        if new is not None:
            out[name] = new
    return out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_0": None}, "data is missing"),
        ({"data_0": b"short"}, "not what the file says"),
        ({"data_0": bytes(129)}, "not what the file says"),
        ({"byteorder": b"big"}, "big-endian"),
    ],
)
def test_lies_in_a_zip_are_refused(tmp_path: Path, changes: dict[str, bytes | None], words: str) -> None:
    with zipfile.ZipFile(io.BytesIO(saved(tensor()))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    both_refuse(zipped(tmp_path / "v.pt", changed(members, **changes)), words)


@pytest.mark.parametrize("layout", ["stream", "pickle 4"])
def test_lies_in_a_stream_are_refused(tmp_path: Path, layout: str) -> None:
    good, path = LAYOUTS[layout](tensor()), tmp_path / "v"
    count = struct.pack("<q", 32)
    assert count in good
    for lie in (struct.pack("<q", 33), struct.pack("<q", 2**40), struct.pack("<q", -1), struct.pack("<q", 0)):
        path.write_bytes(good.replace(count, lie))
        both_refuse(path, "not what the file says")
    path.write_bytes(good.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    both_refuse(path, "big-endian")
    path.write_bytes(good.replace(b"FloatStorage", b"FrostStorage"))
    both_refuse(path, "FrostStorage")
    for length in (1, 2, 15, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        both_refuse(path)


def test_numbers_past_the_end_of_the_data_are_refused(tmp_path: Path) -> None:
    good, path = pickled(tensor()), tmp_path / "v"
    # Shape (4, 8) and strides (8, 1), as the pickle spells them.
    at = good.rindex(b"K\x04K\x08\x86")
    for shape in (b"K\x05K\x08\x86", b"K\x04K\xff\x86", b"J\xff\xff\xff\x7fK\x08\x86", b"J\xff\xff\xff\xffK\x08\x86"):
        path.write_bytes(good[:at].replace(good[2:11], b"") + shape + good[at + 5 :])
        both_refuse(path)


def test_mkultra_json_takes_any_of_them(tmp_path: Path) -> None:
    for number, make in enumerate(LAYOUTS.values()):
        if make is saved:
            continue
        path = mkultra(tmp_path / f"{number}.json", make(tensor()))
        assert np.array_equal(formats.read(path).matrix, matrix())
