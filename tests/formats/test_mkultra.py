"""mkultra's JSON: real files, files like them, and ours as mkultra reads them."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sordino import formats
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.formats.makers import FULL, mkultra, pickled, prompt, tensor
from tests.formats.refusals import both_refuse, refusal
from tests.prompt_files import matrix

SAMPLES = {
    "emma_gpt2.json": ((20, 768), "Emma Violence"),
    "gibson-experimental-2-gpt-neo-2.7B-step-75.json": ((100, 2560), "gibson-experimental-2-step-75"),
    "iotest.json": ((2, 768), "FromString"),
    "neuromancer_gpt2.json": ((100, 768), "neuromancer-gpt2"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_real_files(shared_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, (shape, said) = shared_dir / "samples" / "mkultra" / name, SAMPLES[name]
    assert formats.detect(path) == "mkultra"
    assert (formats.peek(path).n_tokens, formats.peek(path).d_model) == shape
    found = formats.read(path)
    assert found.metadata.name == said
    assert found.metadata.created.startswith("2021-06-")
    # These four are known to be good; mkultra's own way of reading them is the referee. They were made on a GPU.
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **rest: load(*args, **rest | {"map_location": "cpu"}))
    theirs = pickle.loads(base64.b64decode(json.loads(path.read_text())["tensor"]))
    assert np.array_equal(found.matrix, theirs.detach().float().numpy().reshape(shape))


def as_mkultra(path: Path) -> tuple[torch.Tensor, dict[str, Any]]:
    """What mkultra's SoftPrompt.from_file does."""
    with open(path, encoding="ascii") as file:
        said = json.loads(file.read())
    return pickle.loads(base64.b64decode(said["tensor"].encode("ascii"))), said["metadata"]


def test_mkultra_reads_what_we_write(tmp_path: Path) -> None:
    formats.write(prompt(), tmp_path / "v.json", to="mkultra")
    theirs, metadata = as_mkultra(tmp_path / "v.json")
    assert torch.equal(theirs, tensor())
    assert theirs.dtype == torch.float32
    assert theirs.is_contiguous()
    assert not theirs.requires_grad
    theirs += 1
    assert metadata["name"] == "The Keeper"
    assert metadata["description"] == FULL.description
    assert len(metadata["uuid"]) == 36
    assert metadata["epoch"] == 1767312000.0


def test_all_metadata_goes_through_the_file(tmp_path: Path) -> None:
    formats.write(prompt(), tmp_path / "v.json", to="mkultra")
    assert formats.read(tmp_path / "v.json").metadata == FULL
    formats.write(SoftPrompt(matrix()), tmp_path / "w.json", to="mkultra")
    assert formats.read(tmp_path / "w.json").metadata == Metadata()
    # mkultra notes the time of loading where there is none.
    assert "epoch" not in as_mkultra(tmp_path / "w.json")[1]


def test_reads_metadata_as_mkultra_writes_it(tmp_path: Path) -> None:
    said = {"name": "n", "uuid": "u", "description": "d", "epoch": 1623343566.25, "step": 75, "loss": 3.5}
    found = formats.read(mkultra(tmp_path / "v.json", pickled(tensor()), said)).metadata
    assert found == Metadata(
        "n", description="d", created="2021-06-10T16:46:06+00:00", training={"step": 75, "loss": 3.5}
    )
    for odd in ({}, {"epoch": "yesterday"}, {"epoch": -5}, {"epoch": 1e300}, {"name": None}):
        assert formats.read(mkultra(tmp_path / "v.json", pickled(tensor()), odd)).metadata.name == ""


def test_keys_in_another_order_and_spaces_are_no_matter(tmp_path: Path) -> None:
    text = json.dumps(
        {"tensor": base64.b64encode(pickled(tensor())).decode(), "metadata": {"name": 'a "tensor": "b"'}}, indent=4
    )
    (tmp_path / "v").write_text("\ufeff \n" + text.replace('"tensor": "', '"tensor"\n :\t"', 1), encoding="utf-8")
    assert formats.read(tmp_path / "v").metadata.name == 'a "tensor": "b"'


def test_several_prompts_need_an_index(tmp_path: Path) -> None:
    path = mkultra(tmp_path / "v.json", pickled(torch.stack([tensor(0), tensor(1)])))
    assert "--index" in refusal(path)
    assert np.array_equal(formats.read(path, index=1).matrix, matrix(1))


GOOD = base64.b64encode(pickled(tensor())).decode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("{}", "not mkultra's"),
        ('{"metadata": {}}', "not mkultra's"),
        ('{"metadata": {}, "tensor": 5}', "not mkultra's"),
        ('{"metadata": {}, "inner": {"tensor": "%s"}}', "not mkultra's"),
        ('{"metadata": {}, "tensor": "%s", "tensor": 5}', "not mkultra's"),
        ('{"metadata": {}, "tensor": "%s"', "not JSON"),
        ('{"metadata": {}, "tensor": "%s', "does not end"),
        ('{"metadata": [], "tensor": "%s"}', "metadata"),
        ('{"metadata": {"name": 5}, "tensor": "%s"}', "name"),
        ('{"metadata": {"sordino": {"format_version": 3}}, "tensor": "%s"}', "newer"),
        ('{"metadata": {}, "tensor": ""}', "cut short"),
        ('{"metadata": {}, "tensor": "gAQ"}', "base64"),
        ('{"metadata": {}, "tensor": "g!Qu"}', "base64"),
        ('{"metadata": {}, "tensor": "gA==%s"}', "base64"),
        ('{"metadata": {}, "tensor": "\\u0067%s"}', "base64"),
        ('{"metadata": {}, "tensor": "%s="}', "base64"),
        ('{"peft_type": "PROMPT_TUNING"}', "give the folder"),
        ('{"name": "v", "supported": []}', "give the folder"),
    ],
)
def test_refuses_what_is_not_mkultras(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "v.json"
    path.write_text(text.replace("%s", GOOD))
    both_refuse(path, words)


def test_refuses_a_tensor_that_is_cut_short(tmp_path: Path) -> None:
    for length in (0, 4, 40, 400, len(GOOD) - 4):
        path = tmp_path / "v.json"
        path.write_text(json.dumps({"metadata": {}, "tensor": GOOD[:length]}))
        both_refuse(path, "cut short")


def test_refuses_json_that_is_large_without_a_tensor(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text('{"metadata": {"name": "' + "a" * (2 << 20) + f'"}}, "tensor": "{GOOD}"}}')
    both_refuse(tmp_path / "v.json", "too large")
    (tmp_path / "v.json").write_text(f'{{"tensor": "{GOOD}", "metadata": {{"name": "' + "a" * (2 << 20) + '"}}')
    both_refuse(tmp_path / "v.json", "too large")
