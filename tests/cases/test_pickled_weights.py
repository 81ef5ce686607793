"""Pickled weights. People had: GPT-J and Pygmalion, whose repositories hold `pytorch_model.bin`, whole, in shards, and as torch
wrote it before 1.6; and files of strangers that run a program when they are read.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sordino.errors import ModelError, OutOfMemory, StorageError
from sordino.models import base_model, cache, files, fingerprint, hub, pickled_weights
from sordino.models.sizes import parameters_in
from tests.tiny_models import saved_tiny

SAID: list[str] = []


@pytest.fixture(autouse=True)
def _cache(empty_cache: Path) -> None:
    SAID.clear()


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A model with safetensors weights."""
    return saved_tiny(tmp_path / "whole", "gptj")


def pickled(folder: Path, whole: Path, state: object = None, **how: Any) -> Path:
    """The same model with `pytorch_model.bin`."""
    folder.mkdir()
    for path in whole.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    torch.save(state or OrderedDict(load_file(whole / "model.safetensors")), folder / "pytorch_model.bin", **how)
    return folder


def prepared(folder: Path) -> files.PreparedModel:
    return files.prepare(files.resolve(str(folder)), notify=SAID.append)


def refused(folder: Path, *said: str) -> None:
    with pytest.raises(ModelError) as caught:
        prepared(folder)
    assert "\n" not in caught.value.message
    assert "torch.load" not in caught.value.message, "advice to people who call it"
    for part in said:
        assert part in caught.value.message
    # Nothing half written is left.
    assert not [path for path in (cache.cache_folder() / "converted").glob("*") if not path.name.startswith(".")]


def logits_of(folder: Path) -> torch.Tensor:
    base = base_model.load(str(folder), device="cpu", dtype="float32")
    with torch.inference_mode():
        return base.network(torch.tensor([[5, 9, 12, 30]])).logits


@pytest.mark.parametrize("layout", ["zip", "stream", "shards"])
def test_they_give_the_same_model_as_safetensors_do_and_are_converted_once(
    tmp_path: Path, whole: Path, layout: str
) -> None:
    folder = pickled(tmp_path / "old", whole, _use_new_zipfile_serialization=layout != "stream")
    if layout == "shards":
        state = torch.load(folder / "pytorch_model.bin")
        (folder / "pytorch_model.bin").unlink()
        names = sorted(state)
        shards = {f"pytorch_model-0000{n}-of-00002.bin": names[n - 1 :: 2] for n in (1, 2)}
        for file, some in shards.items():
            torch.save({name: state[name] for name in some}, folder / file)
        table = {name: file for file, some in shards.items() for name in some}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
    assert prepared(folder).fingerprint == prepared(whole).fingerprint
    assert torch.equal(logits_of(folder), logits_of(whole))
    assert [line.split(" GB")[0] for line in SAID] == [
        f"converting the pickled weights of {folder} to safetensors (0.0"
    ]
    assert not list(prepared(folder).folder.glob("*.bin"))


def test_weights_that_two_names_share_are_written_once(tmp_path: Path) -> None:
    whole = saved_tiny(tmp_path / "whole", "gpt2", tie_word_embeddings=True)
    state = OrderedDict(load_file(whole / "model.safetensors"))
    state["lm_head.weight"] = state["transformer.wte.weight"]
    # A view into what others hold, as old checkpoints have them, is written as numbers of its own.
    both = torch.stack([state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]], dim=1)
    state["transformer.ln_f.weight"], state["transformer.ln_f.bias"] = both[:, 0], both[:, 1]
    folder = pickled(tmp_path / "old", whole, state)
    assert prepared(folder).fingerprint == prepared(whole).fingerprint
    assert torch.equal(logits_of(folder), logits_of(whole))


def test_numbers_of_every_kind_stay_what_they_are(tmp_path: Path, whole: Path) -> None:
    state = OrderedDict(load_file(whole / "model.safetensors"))
    more = {
        "mask": torch.tril(torch.ones(1, 1, 4, 4, dtype=torch.bool)),
        "masked_bias": torch.tensor(-1e9),
        "half": torch.randn(3, 2, dtype=torch.float16).t(),
        "brain": torch.randn(3).bfloat16(),
        "count": torch.tensor([1, 2**40]),
        "none": torch.empty(0, 5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    folder = pickled(tmp_path / "old", whole, OrderedDict({**state, **more}))
    written = load_file(prepared(folder).folder / "model.safetensors")
    for name, tensor in {**state, **more}.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name], tensor)


def test_safetensors_are_taken_where_there_are_both(tmp_path: Path, whole: Path) -> None:
    (whole / "pytorch_model.bin").write_bytes(b"never read")
    assert prepared(whole).folder == whole
    assert not SAID


def test_its_size_is_known_before_it_is_converted(tmp_path: Path, whole: Path) -> None:
    folder = pickled(tmp_path / "old", whole)
    assert parameters_in(folder) == pytest.approx(parameters_in(whole), rel=0.2)


# Files of strangers


class Runs:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_a_program_runs_nothing(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, *, zipped: bool
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    folder = pickled(tmp_path / "old", whole, {"x": Runs(tmp_path / "ran")}, _use_new_zipfile_serialization=zipped)
    refused(folder, "pytorch_model.bin", "which could run a program; nothing of it was run", "system", "safetensors")
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_runs_nothing(tmp_path: Path, whole: Path) -> None:
    folder = pickled(tmp_path / "old", whole)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Runs(tmp_path / "ran")}))
    refused(folder, "pytorch_model.bin")
    assert not (tmp_path / "ran").exists()


def test_a_module_of_the_working_directory_is_not_run(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "zipfile", "json"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    folder = pickled(tmp_path / "old", whole)
    monkeypatch.chdir(tmp_path)
    prepared(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"x": torch.nn.Linear(2, 2)}, "asks for a function or class"),
        ([torch.ones(2)], "no state dictionary"),
        ({"x": {"y": torch.ones(2)}}, "something else than named tensors"),
        ({"x": 3}, "something else than named tensors"),
        ({3: torch.ones(2)}, "something else than named tensors"),
        ({"x": torch.ones(2, dtype=torch.complex64)}, "of a kind that safetensors does not hold"),
        ({"x": torch.eye(3).to_sparse()}, "of a kind that safetensors does not hold"),
        ({"x": torch.ones(2, device="meta")}, "pytorch_model.bin"),
        ({"x": torch.ones(1).expand(1 << 40)}, "tensors that repeat their numbers are larger than the file"),
        (
            dict(zip(map(str, range(1000)), [torch.ones(1 << 16)] * 1000, strict=True)),
            "tensors that repeat their numbers are larger than the file",
        ),
    ],
)
def test_what_is_no_state_dictionary_is_refused(tmp_path: Path, whole: Path, state: object, said: str) -> None:
    folder = pickled(tmp_path / "old", whole, state)
    with pytest.raises(ModelError, match=said):
        prepared(folder)


def rezipped(path: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipInfo, bytes], None]) -> None:
    old = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w") as new:
        for member in old.infolist():
            change(new, member, old.read(member))


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path: Path, whole: Path) -> None:
    folder = pickled(tmp_path / "old", whole)

    def bomb(new: zipfile.ZipFile, member: zipfile.ZipInfo, data: bytes) -> None:
        data = data + bytes(100 << 20) if member.filename.endswith("data.pkl") else data
        new.writestr(member.filename, data, compress_type=zipfile.ZIP_DEFLATED)

    rezipped(folder / "pytorch_model.bin", bomb)
    refused(folder, "the archive is compressed")


def test_members_that_share_their_bytes_are_refused(tmp_path: Path, whole: Path) -> None:
    folder = pickled(tmp_path / "old", whole)
    path = folder / "pytorch_model.bin"
    data = bytearray(path.read_bytes())
    # The central directory says that every member is 4 MB.
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        data[at + 20 : at + 28] = struct.pack("<II", 4 << 20, 4 << 20)
        at = data.find(b"PK\x01\x02", at + 4)
    path.write_bytes(data)
    refused(folder, "pytorch_model.bin")


def test_a_stream_that_asks_for_memory_that_it_does_not_fill_is_refused(tmp_path: Path, whole: Path) -> None:
    folder = pickled(tmp_path / "old", whole, _use_new_zipfile_serialization=False)
    path = folder / "pytorch_model.bin"
    data = path.read_bytes()
    count = struct.pack("<H", 32 * 64)
    assert b"M" + count in data
    # BININT2 becomes LONG1: a storage of 2^40 numbers.
    path.write_bytes(data.replace(b"M" + count, b"\x8a\x06" + (1 << 40).to_bytes(6, "little")))
    refused(folder, "pytorch_model.bin", "asks for more memory than its size justifies")


def test_a_part_of_a_file_is_refused(tmp_path: Path, whole: Path) -> None:
    for n, how in enumerate((True, False)):
        folder = pickled(tmp_path / f"old{n}", whole, _use_new_zipfile_serialization=how)
        data = (folder / "pytorch_model.bin").read_bytes()
        for share in (0.0, 0.01, 0.5, 0.99):
            (folder / "pytorch_model.bin").write_bytes(data[: int(share * len(data))])
            refused(folder, "pytorch_model.bin", "fetch it again")


def test_shards_that_are_not_all_there_or_hold_a_tensor_twice_are_refused(tmp_path: Path, whole: Path) -> None:
    folder = pickled(tmp_path / "old", whole)
    one, two = folder / "pytorch_model-1.bin", folder / "pytorch_model-2.bin"
    (folder / "pytorch_model.bin").rename(one)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": one.name, "b": two.name}}))
    refused(folder, "weights are missing", two.name)
    two.write_bytes(one.read_bytes())
    refused(folder, "two files hold one tensor")


def test_files_of_another_layout_are_named(tmp_path: Path, whole: Path) -> None:
    folder = pickled(tmp_path / "old", whole)
    (folder / "pytorch_model.bin").rename(folder / "model.pt")
    refused(folder, "no weights here", "pytorch_model.bin", "got model.pt")


# The machine


def test_a_disk_that_is_full_or_fills_is_called_so(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pickled(tmp_path / "old", whole)
    with monkeypatch.context() as patch:
        patch.setattr("sordino.models.cache.shutil.disk_usage", lambda _: type("", (), {"free": 10}))
        with pytest.raises(StorageError, match="the disk of the cache is too full for this model"):
            prepared(folder)
    # The process that writes says so, as of a limit on files.
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (folder / "pytorch_model.bin").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"could not be written \(File too large\)"):
            prepared(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((cache.cache_folder() / "converted").iterdir())
    assert prepared(folder).fingerprint == prepared(whole).fingerprint


def test_a_stream_larger_than_the_memory_is_refused_before_it_is_read(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("", (), {"total": 1000}))
    monkeypatch.setattr(pickled_weights, "_run", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(OutOfMemory, match=r"weights of before torch 1\.6 are read whole"):
        prepared(pickled(tmp_path / "old", whole, _use_new_zipfile_serialization=False))


def test_a_process_that_does_not_end_is_ended(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled_weights, "_SECONDS", 0.05)
    refused(pickled(tmp_path / "old", whole), "the process that reads its pickled weights was ended", "no end after 0")


def test_two_that_want_it_at_once_convert_it_once(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, runs, found = pickled(tmp_path / "old", whole), [], []
    run = pickled_weights._run
    monkeypatch.setattr(pickled_weights, "_run", lambda *a, **k: (runs.append(1), run(*a, **k)))
    threads = [threading.Thread(target=lambda: found.append(prepared(folder))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 1
    assert len(found) == 3
    assert len(set(found)) == 1


def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    # A pipe that nobody writes to: the file is never read to its end.
    weights, target = tmp_path / "pytorch_model.bin", tmp_path / "target"
    os.mkfifo(weights)
    target.mkdir()
    task = json.dumps({"files": [str(weights)], "folder": str(target), "tied": {}})
    command = [sys.executable, "-P", "-m", "sordino.models.pickle_process", task]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        process.stdin.close()
        assert process.wait(timeout=60) == 1
    assert list(target.iterdir()) == []


def test_an_edited_model_is_converted_again(tmp_path: Path, whole: Path) -> None:
    folder = pickled(tmp_path / "old", whole)
    first = prepared(folder)
    state = torch.load(folder / "pytorch_model.bin")
    state["lm_head.bias"] += 1
    torch.save(state, folder / "pytorch_model.bin")
    assert prepared(folder).fingerprint != first.fingerprint
    assert len(SAID) == 2


# The Hub


def test_of_the_hub_pickles_are_fetched_where_nobody_proposed_safetensors(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(store))
    snapshot = store / "models--someone--old" / "snapshots" / ("1" * 40)
    snapshot.parent.mkdir(parents=True)
    pickled(snapshot, whole)
    weights = (snapshot / "pytorch_model.bin").read_bytes()
    (snapshot / "pytorch_model.bin").unlink()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("1" * 40)
    asked: list[list[str]] = []
    real = __import__("huggingface_hub").snapshot_download

    def download(model_id: str, *, allow_patterns: Any = None, local_files_only: bool = False, **more: Any) -> str:
        if local_files_only:
            return str(real(model_id, local_files_only=True, **more))
        asked.append(allow_patterns)
        if "pytorch_model*.bin" in allow_patterns:
            (snapshot / "pytorch_model.bin").write_bytes(weights)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.get_repo_discussions", lambda *_, **__: iter(()))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    found = files.prepare(files.resolve("someone/old"), notify=SAID.append)
    assert found.fingerprint == fingerprint.of_folder(whole)
    assert ["pytorch_model*.bin" in patterns for patterns in asked] == [False, False, True]
    assert hub.on_this_machine("someone/old") == snapshot
    assert SAID[-1].startswith("converting the pickled weights of someone/old to safetensors")
