"""A PEFT folder as people send it: a zip, of the folder or of the files in it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest

from sordino import formats
from sordino.library.library import Library
from tests.formats.makers import FULL, prompt, saved, tensor, zipped
from tests.formats.refusals import both_refuse
from tests.prompt_files import matrix
from tests.server.running import running, voice

CONFIG = b'{"peft_type": "PROMPT_TUNING", "base_model_name_or_path": "org/model"}'


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("folder", ["", "keeper/", "out/keeper/"])
def test_an_adapter_in_a_zip_is_read(tmp_path: Path, folder: str, method: int) -> None:
    formats.write(prompt(), tmp_path / "keeper", to="peft")
    files = {f"{folder}{path.name}": path.read_bytes() for path in (tmp_path / "keeper").iterdir()}
    others = {f"{folder}README.md": b"Notes.", f"{folder}optimizer.pt": b"\x80"}
    path = zipped(tmp_path / "v.zip", files | others, method)
    assert formats.detect(path) == "peft"
    assert formats.read(path).metadata == FULL
    assert np.array_equal(formats.read(path).matrix, matrix())
    assert formats.peek(path).metadata == FULL


def test_without_metadata_the_zip_gives_the_name(tmp_path: Path) -> None:
    members = {"adapter_config.json": CONFIG, "adapter_model.bin": saved({"prompt_embeddings": tensor()})}
    path = zipped(tmp_path / "The Keeper.zip", {f"prompt_tuning/{name}": data for name, data in members.items()})
    assert formats.read(path).metadata.name == "The Keeper"
    assert formats.read(path).metadata.base.id == "org/model"
    packed = zipped(tmp_path / "again.zip", {"inner.zip": path.read_bytes()}, zipfile.ZIP_DEFLATED)
    assert np.array_equal(formats.read(packed).matrix, matrix())


def test_one_without_weights_is_refused(tmp_path: Path) -> None:
    both_refuse(zipped(tmp_path / "v.zip", {"a/adapter_config.json": CONFIG}), "no adapter_model.safetensors")
    both_refuse(zipped(tmp_path / "w.zip", {"a/README.md": b""}), "no tensor.npy and no adapter_config.json")


def test_a_refusal_says_what_to_do(tmp_path: Path) -> None:
    two = zipped(tmp_path / "two.zip", {f"{name}/adapter_config.json": CONFIG for name in "ab"})
    both_refuse(two, "several: unpack it and read one of its folders")
    np.savez(tmp_path / "prompt.npz", prompt=matrix())
    both_refuse(tmp_path / "prompt.npz", "save the matrix alone: numpy.save")


def test_a_server_takes_it_by_upload(tmp_path: Path) -> None:
    """A form has one file, and an adapter is a folder: there was no way to upload one with its configuration."""
    with running(tmp_path) as live:
        formats.write(voice(live.base, 6, name="The Clerk"), tmp_path / "clerk", to="peft")
        path = zipped(
            tmp_path / "c.zip", {f"a/{file.name}": file.read_bytes() for file in (tmp_path / "clerk").iterdir()}
        )
        card = httpx.post(f"{live.url}/v1/soft_prompts", files={"file": ("my clerk.zip", path.read_bytes())}).json()
    assert (card["id"], card["name"], card["fit"]) == ("my clerk", "The Clerk", "exact")


def test_a_library_installs_it_and_lists_one_that_was_dropped_in(tmp_path: Path) -> None:
    formats.write(prompt(), tmp_path / "keeper", to="peft")
    path = zipped(tmp_path / "v.zip", {file.name: file.read_bytes() for file in (tmp_path / "keeper").iterdir()})
    library = Library([tmp_path / "library"])
    assert formats.detect(library.add(formats.read_any(path), name="v").path) == "kobold"
    (tmp_path / "library" / "dropped.zip").write_bytes(path.read_bytes())
    dropped = library.entry("dropped")
    assert (dropped.format, dropped.n_tokens, dropped.error) == ("peft", 4, "")
