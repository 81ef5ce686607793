"""Base models that are broken, or made to break what reads them: one line that says so, before any memory is taken.

People had: half a download, a config.json edited by hand, a GGUF file of 190 bytes that made the library build 23 GB, a chat
template that divides by zero, a tokenizer whose pattern never ends.
"""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from sordino.errors import ModelError, OutOfMemory, StorageError
from sordino.models import base_model, files, hub
from sordino.models.gguf_header import read_gguf_header
from tests.tiny_models import saved_tiny, tiny_base, tiny_gguf

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved_tiny(tmp_path / "m")


def edited(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refused(path: Path, *said: str) -> None:
    with pytest.raises(ModelError) as caught:
        base_model.load(str(path), device="cpu")
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
    for part in said:
        assert part in caught.value.message


# Configurations that ask for more than the weights hold


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
        {"vocab_size": 10**9},
        {"intermediate_size": 10**7},
        {"num_hidden_layers": 1000},
        {"vocab_size": 10**12},
        {"hidden_size": 2**62, "num_attention_heads": 1},
    ],
)
def test_a_configuration_for_a_far_larger_network_is_refused_before_it_is_built(
    folder: Path, changes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(folder / "config.json", **changes)
    monkeypatch.setattr(base_model, "read_network", lambda *_, **__: pytest.fail("was built"))
    refused(folder)


@pytest.mark.parametrize("nested", [False, True])
def test_more_layers_than_any_model_has_are_refused_before_a_list_of_them_is_made(
    folder: Path, *, nested: bool
) -> None:
    settings = {"num_hidden_layers": 10**10}
    edited(folder / "config.json", **({"text_config": settings} if nested else settings))
    refused(folder, "the configuration has too many layers", "num_hidden_layers 1e+10")


def test_tables_of_positions_count_as_memory(tmp_path: Path) -> None:
    saved_tiny(tmp_path, "gptj")
    edited(tmp_path / "config.json", n_positions=10**12)
    with pytest.raises(OutOfMemory, match="keeps tables of its positions"):
        base_model.load(str(tmp_path), device="cpu")


def test_a_model_larger_than_the_machine_is_refused_before_it_is_built(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = __import__("psutil").virtual_memory()
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory._replace(total=100_000))
    monkeypatch.setattr(base_model, "read_network", lambda *_, **__: pytest.fail("was built"))
    with pytest.raises(OutOfMemory, match=r"held in memory \(float32\).*too large.*--dtype bfloat16"):
        base_model.load(str(folder), device="cpu", dtype="float32")


def test_shapes_that_the_bytes_do_not_fill_are_refused(folder: Path) -> None:
    edited(folder / "config.json", vocab_size=10**8)
    header = {"a": {"dtype": "F32", "shape": [10**8, 32], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)
    refused(folder, "not a whole safetensors file", "8 bytes for the shape")


def test_tensors_that_share_bytes_are_refused(folder: Path) -> None:
    header = {f"t{i}": {"dtype": "F32", "shape": [256], "data_offsets": [0, 1024]} for i in range(100)}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 1024)
    refused(folder, "larger together than the file")


def test_models_whose_weights_are_tied_or_more_than_they_need_are_read(tmp_path: Path) -> None:
    for family, tied in (("llama", True), ("gpt2", True), ("qwen3", False), ("gptj", False), ("gemma3", True)):
        model = saved_tiny(tmp_path / family, family, tie_word_embeddings=tied)
        weights = load_file(model / "model.safetensors")
        save_file({**weights, "a.tower.of.pictures": torch.zeros(1000)}, model / "model.safetensors", {"format": "pt"})
        assert base_model.load(str(model), device="cpu").d_model == 32


@pytest.mark.parametrize("numbers", [0, 512])
def test_a_gguf_file_without_sizes_is_not_built_in_the_librarys_default_size(tmp_path: Path, numbers: int) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "c"])
    writer.add_token_merges([])
    if numbers:
        writer.add_tensor("token_embd.weight", torch.zeros(8, 64).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(path, "do not belong together", "a configuration for 6,")


def test_a_gguf_file_that_counts_layers_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2**31)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    refused(path, "the configuration has too many layers")


# Headers and settings that make no sense


def header_of(*fields: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(fields)) + b"".join(fields)


def field(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    "alignment",
    [
        (8, struct.pack("<Q", 3) + b"abc"),
        (9, struct.pack("<IQI", 4, 1, 32)),
        (6, struct.pack("<f", float("inf"))),
        (6, struct.pack("<f", float("nan"))),
        (6, struct.pack("<f", 32.0)),
        (7, b"\1"),
        (5, struct.pack("<i", -1)),
        (4, struct.pack("<I", 0)),
        (10, struct.pack("<Q", 2**63)),
    ],
)
def test_an_alignment_that_is_no_alignment_is_a_broken_header(tmp_path: Path, alignment: tuple[int, bytes]) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(header_of(field("general.alignment", *alignment)))
    with pytest.raises(ModelError, match=r"not a whole GGUF file.*alignment"):
        read_gguf_header(path)


@pytest.mark.parametrize("key", ["general.architecture", "tokenizer.ggml.pre", "tokenizer.ggml.tokens"])
@pytest.mark.parametrize("kind", [(4, struct.pack("<I", 7)), (9, struct.pack("<IQ", 8, 0))])
def test_a_field_of_another_kind_is_refused_in_one_line(tmp_path: Path, key: str, kind: tuple[int, bytes]) -> None:
    fields = {"general.architecture": (8, struct.pack("<Q", 5) + b"llama"), key: kind}
    path = tmp_path / "x.gguf"
    path.write_bytes(header_of(*(field(name, *value) for name, value in fields.items())))
    refused(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"num_key_value_heads": 0},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 0},
        {"hidden_size": "a" * 100},
        {"hidden_size": 0},
        {"hidden_size": -32},
        {"rope_scaling": {"rope_type": "linear"}},
        {"rope_scaling": 7},
        {"hidden_act": "no such thing"},
        {"layer_types": [1, 2, 3]},
        {"model_type": ["llama"]},
        {"max_position_embeddings": "long"},
        {"rms_norm_eps": None},
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_in_one_line(folder: Path, changes: dict[str, Any]) -> None:
    edited(folder / "config.json", **changes)
    refused(folder)


@pytest.mark.parametrize(
    "data", [b"[]", b"[" * 100_000, b'{"model_type":"llama","hidden_size":NaN}', b"\xff\xfe", b"", b"7"]
)
def test_a_configuration_that_is_no_configuration_is_refused_in_one_line(folder: Path, data: bytes) -> None:
    (folder / "config.json").write_bytes(data)
    refused(folder)


@pytest.mark.parametrize(
    "data", [b'{"weight_map": {"a": ["x"], "b": {}}}', b"[" * 100_000, b'{"weight_map": {"a": "../x"}}']
)
def test_a_list_of_weights_that_makes_no_sense_is_refused_in_one_line(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_bytes(data)
    refused(folder)


# Tokenizers and templates, which are programs of strangers


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}),
        lambda state: state.update(pre_tokenizer={"type": "no such thing"}),
        lambda state: state.update(added_tokens=[{"id": -1}]),
        lambda state: state.update(added_tokens=7),
        lambda state: state.update(model=[]),
        lambda state: state.update(model={"type": "BPE", "vocab": {"a": 0}, "merges": [7]}),
        lambda state: state.clear(),
    ],
)
def test_a_tokenizer_that_makes_no_sense_is_refused_in_one_line(folder: Path, change: Callable[[Any], None]) -> None:
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))
    refused(folder)


def test_a_tokenizer_of_more_words_than_the_model_has_is_an_error_of_the_model(tmp_path: Path) -> None:
    saved_tiny(tmp_path, vocab_size=280)
    base = base_model.load(str(tmp_path), device="cpu")
    assert max(base.encode("a b c")) < 280
    with pytest.raises(ModelError, match=r"tokenizer and the weights do not belong together.*280 tokens"):
        base.encode("the keeper wrote of the ship")


class Panic(BaseException):
    """As tokenizers raises it: no Exception, so that `except Exception` does not see it."""


Panic.__name__ = "PanicException"


class Panicking:
    is_fast = True

    def __call__(self, *_: object, **__: object) -> None:
        raise Panic("called `Option::unwrap()` on a `None` value")


def test_a_tokenizer_that_panics_over_a_text_is_an_error_of_the_model() -> None:
    base = tiny_base("llama")
    object.__setattr__(base, "tokenizer", Panicking())
    for read in (base.encode, base.encode_markup, base.token_starts):
        with pytest.raises(ModelError, match=r"tiny-llama: the model's tokenizer cannot read the text.*unwrap"):
            read("a text")


def test_a_pattern_that_never_ends_is_an_error_of_the_model(folder: Path) -> None:
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps({**state, "pre_tokenizer": split}))
    base = base_model.load(str(folder), device="cpu")
    with pytest.raises(ModelError, match="tokenizer cannot read the text"):
        base.encode("a" * 40 + "b")


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1/0 }}",
        "{{ 10**400 * 1.5 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ messages[0].foo.bar }}",
        "{% if %}",
        "{{ range(10**12)|list }}",
        "{% include '/etc/passwd' %}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ (10**10**5)|string|length }}",
    ],
)
def test_a_template_that_fails_is_an_error_of_the_model(template: str) -> None:
    base = tiny_base("llama")
    base.tokenizer.chat_template = template
    with pytest.raises(ModelError) as caught:
        base.chat_segments([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message


# A disk that is full


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        # As safetensors and tokenizers say it, whose errors are no OSErrors.
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
@pytest.mark.parametrize("method", ["save_pretrained", "tokenizer"])
def test_a_disk_that_fills_while_a_conversion_is_saved_is_called_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, error: Exception
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    path = tiny_gguf(tmp_path / "x.gguf")
    target = (
        "modeling_utils.PreTrainedModel"
        if method == "save_pretrained"
        else "tokenization_utils_base.PreTrainedTokenizerBase"
    )
    monkeypatch.setattr(f"transformers.{target}.save_pretrained", full)
    with pytest.raises(StorageError, match=r"could not be written \(No space left on device\)"):
        files.prepare(files.resolve(str(path)))
    monkeypatch.undo()


def test_a_disk_that_fills_while_the_hub_is_asked_is_not_called_an_unreachable_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for error, expected, said in (
        (
            OSError(28, "No space left on device", str(tmp_path / "hub" / "blob")),
            StorageError,
            "No space left on device",
        ),
        (RuntimeError("Data processing error: (os error 28)"), StorageError, "No space left on device"),
        (ConnectionResetError(104, "Connection reset by peer"), ModelError, "the Hugging Face Hub cannot be reached"),
        (RuntimeError("the loader gave up"), ModelError, "the Hugging Face Hub cannot be reached"),
    ):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        with pytest.raises(expected, match=said):
            hub._download("someone/tiny", ["*.json"], "")


def test_a_misspelt_name_is_noticed_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match=r"cannot be reached; try again .*; did you mean smollm2\?"):
        files.prepare(files.resolve("smolm2"))


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "tokenizer_config.json"])
def test_a_file_that_may_not_be_read_is_not_called_broken(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "index" in name:
        (folder / "model.safetensors").rename(folder / name)
    opened = Path.open

    def denied(self: Path, *arguments: Any, **more: Any) -> Any:
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *arguments, **more)

    monkeypatch.setattr(Path, "open", denied)
    refused(folder, f"{name}: cannot be read; got Permission denied")
