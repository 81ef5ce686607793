"""The file of a KV prompt: what is in it, and what is refused."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as load_safetensors

from sordino import formats
from sordino.errors import BadInput, SoftPromptFileError
from sordino.prompts.attention import PromptAttention
from sordino.prompts.kv_prompt import MAX_KV_WIDTH, KVPrompt, KVShape
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.formats.kv_makers import described, encoded, entry, good, kv_prompt, numbers, safetensors
from tests.formats.makers import zipped
from tests.formats.refusals import both_refuse, refusal
from tests.formats.test_mixtures import component, members
from tests.prompt_files import matrix, npy

MEMBERS = ["kv_prompt.safetensors", "meta.json"]


def written(folder: Path, prompt: KVPrompt | None = None) -> Path:
    formats.write(prompt or kv_prompt(), folder / "good.kv.zip", force=True)
    return folder / "good.kv.zip"


def of(path: Path, **members: bytes) -> Path:
    """A zip of our two members, either of which may be given."""
    tensors = members.get("tensors", safetensors(good(), numbers()))
    return zipped(path, {MEMBERS[0]: tensors, MEMBERS[1]: members.get("meta", encoded(described()))})


def test_what_is_in_it(tmp_path: Path) -> None:
    prompt = kv_prompt(placement="after_bos", attention=PromptAttention(128, 2), base=BaseRef(d_model=8, n_layers=2))
    content = members(written(tmp_path, prompt))
    assert list(content) == MEMBERS
    tensors = load_safetensors(content[MEMBERS[0]])
    assert sorted(tensors) == ["flat", "last"]
    assert np.array_equal(tensors["flat"], prompt.flat_PW)
    assert np.array_equal(tensors["last"], prompt.last_D)
    ours = json.loads(content["meta.json"])["sordino"]
    assert list(ours) == ["format_version", "content_sha256", "kind", "kv", "base", "placement"]
    assert ours["kv"] == {
        "layers": 2,
        "heads": 1,
        "channels": 2,
        "dtype": "float32",
        "keys": "rotated",
        "first_position": 1,
    }
    assert ours["placement"] == {"position": "after_bos", "hold": 128, "strength": 2.0}


@pytest.mark.parametrize("d_model", [0, 8])
@pytest.mark.parametrize("placement", ["start", "after_bos"])
def test_it_comes_back_as_it_was_and_gives_the_same_bytes(tmp_path: Path, placement: Any, d_model: int) -> None:
    prompt = kv_prompt(placement=placement, d_model=d_model, licence="CC0-1.0", samples=({"prompt": "a"},))
    path = written(tmp_path, prompt)
    found = formats.read_any(path)
    assert isinstance(found, KVPrompt)
    assert (found.content_hash, found.metadata, found.shape) == (prompt.content_hash, prompt.metadata, prompt.shape)
    found.save(tmp_path / "again.kv.zip")
    assert (tmp_path / "again.kv.zip").read_bytes() == path.read_bytes()
    assert formats.detect(path) == "kv"


def test_its_headers_are_enough_for_a_list(tmp_path: Path) -> None:
    path = written(tmp_path)
    seen = formats.peek(path)
    assert (seen.format, seen.kind, seen.n_tokens, seen.d_model) == ("kv", "KV prompt", 3, 8)
    assert (seen.metadata.name, seen.size, seen.components) == ("kv0", path.stat().st_size, 0)
    assert seen.parts[0].kv == KVShape(2, 1, 2)


def test_float16_takes_half_the_bytes_and_the_hash_is_of_what_is_read(tmp_path: Path) -> None:
    prompt = kv_prompt(shape=KVShape(2, 2, 64))
    small = prompt.rounded()
    assert small.content_hash != prompt.content_hash
    sizes = [written(tmp_path, one).stat().st_size for one in (prompt, small)]
    assert sizes[1] < 0.6 * sizes[0]
    found = formats.read_any(tmp_path / "good.kv.zip")
    assert isinstance(found, KVPrompt)
    assert found.content_hash == small.content_hash
    assert found.flat_PW.dtype == np.float32
    # A journey does not make it larger again.
    found.with_metadata(name="other").save(tmp_path / "again.kv.zip")
    assert (tmp_path / "again.kv.zip").stat().st_size <= sizes[1] + 8


def test_what_is_beyond_float16_is_not_folded() -> None:
    with pytest.raises(BadInput, match="too large for float16"):
        KVPrompt(np.full((1, 8), 1e6, np.float32), KVShape(2, 1, 2), np.zeros(8, np.float32)).rounded()


def test_where_an_embedding_prompt_is_needed_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SoftPromptFileError, match=r"a KV prompt, where an embedding prompt is needed.*no matrix"):
        formats.read(written(tmp_path))


@pytest.mark.parametrize("to", ["kobold", "mkultra", "npy", "safetensors"])
def test_formats_of_matrices_are_refused_by_name(tmp_path: Path, to: str) -> None:
    with pytest.raises(BadInput, match="a KV prompt has no matrix"):
        formats.write(kv_prompt(), tmp_path / "v", to=to)
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize("to", ["kv", "cartridge"])
def test_an_embedding_prompt_is_not_written_as_one(tmp_path: Path, to: str) -> None:
    with pytest.raises(BadInput, match="no keys and values"):
        formats.write(SoftPrompt(matrix()), tmp_path / "v", to=to)


def test_what_is_there_is_replaced_by_force_only(tmp_path: Path) -> None:
    path = tmp_path / "v.kv.zip"
    path.write_bytes(b"old")
    with pytest.raises(BadInput, match="--force"):
        formats.write(kv_prompt(), path)
    with pytest.raises(BadInput, match="plain JSON"):
        formats.write(kv_prompt(training={"x": object()}), path, force=True)
    with pytest.raises(BadInput, match="another width"):
        formats.write(kv_prompt(base=BaseRef(d_model=9)), path, force=True)
    assert path.read_bytes() == b"old"


def test_hashes_may_be_left_out(tmp_path: Path) -> None:
    assert formats.read_any(of(tmp_path / "v")).content_hash == kv_prompt().content_hash


def _kv(**changes: Any) -> dict[str, Any]:
    return described(kv={**described()["sordino"]["kv"], **changes})


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"name": "v"}, "an object"),
        (described(format_version=2), "newer version"),
        (described(format_version=None), "format_version"),
        (described(kind=None), "sordino.kind"),
        (described(kind="LoRA"), "sordino.kind"),
        (described(kv=None), "sordino.kv"),
        (described(kv={}), "sordino.kv.layers"),
        (described(placement=None), "sordino.placement"),
        (described(placement="start"), "an object"),
        (described(placement={"hold": 5}), "placement.position"),
        (described(placement={"position": "start", "hold": 0}), "placement.hold"),
        (described(placement={"position": "after_bos"}), "first_position"),
        (described(tensor_sha256="0" * 64), "unknown key 'tensor_sha256'"),
        (described(mixture={}), "unknown key 'mixture'"),
        (described(more=1), "unknown key 'more'"),
        (described(base={"n_layers": 3}), "base.n_layers"),
        (described(base={"d_model": 9}), "base.d_model"),
        (_kv(layers=3), "stated layers, heads and channels"),
        (_kv(layers=4, channels=1, heads=2), "stated layers, heads and channels"),
        (_kv(layers=1 << 61, heads=1 << 61, channels=1 << 61), "stated layers, heads and channels"),
        (_kv(layers=0), "above 0"),
        (_kv(layers=True), "above 0"),
        (_kv(heads=-1), "above 0"),
        (_kv(channels=2.0), "above 0"),
        (_kv(dtype="bfloat16"), "float32 or float16"),
        (_kv(dtype="float16"), "wrong type"),
        (_kv(keys="plain"), "rotated"),
        (_kv(first_position=1), "first_position"),
        (_kv(more=1), "unknown key 'more'"),
    ],
)
def test_refuses_what_is_no_description(tmp_path: Path, meta: dict[str, Any], words: str) -> None:
    both_refuse(of(tmp_path / "v", meta=encoded(meta)), words)


def _changed(**changes: Any) -> bytes:
    header = {name: one for name, one in (good() | changes).items() if one is not None}
    return safetensors(header, numbers())


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (b"", "bytes"),
        (safetensors(good(), numbers())[:-1], "bytes"),
        (safetensors(good(), numbers() + b"more"), "leave some out"),
        (_changed(last=None), "leave some out"),
        (_changed(last=entry([8], 64, 96)), "share bytes"),
        (_changed(flat=None, keys=entry([3, 8], 0, 96)), "not those of a KV prompt"),
        (_changed(more=entry([0], 0, 0)), "not those of a KV prompt"),
        (_changed(more=entry([1], 0, 4)), "share bytes"),
        (_changed(__metadata__={"sordino": "{}"}), "not those of a KV prompt"),
        (_changed(flat=entry([3, 8], 0, 96, "I32")), "wrong type"),
        (_changed(flat=entry([3, 2, 4], 0, 96)), "dimensions"),
        (_changed(flat=entry([1, 3, 8], 0, 96)), "stated layers"),
        (_changed(flat=entry([24], 0, 96)), "dimensions"),
        (safetensors({"flat": entry([0, 8], 0, 0)}, b""), "out of range"),
        (_changed(flat=entry([1 << 40, 8], 0, 96)), "does not agree"),
        (_changed(last=entry([1, 8], 96, 128)), "dimensions"),
        (_changed(last=entry([], 96, 128)), "does not agree"),
    ],
)
def test_refuses_other_tensors(tmp_path: Path, tensors: bytes, words: str) -> None:
    both_refuse(of(tmp_path / "v", tensors=tensors), words)


def test_too_many_tokens_and_too_wide_rows_are_refused(tmp_path: Path) -> None:
    long = {"flat": entry([2048, 8], 0, 2048 * 32)}
    both_refuse(of(tmp_path / "v", tensors=safetensors(long, bytes(2048 * 32))), "1 to 2047")
    wide = MAX_KV_WIDTH + 4
    said = _kv(layers=wide // 4, heads=1, channels=2)
    header = {"flat": entry([1, wide], 0, wide * 4)}
    both_refuse(of(tmp_path / "w", tensors=safetensors(header, bytes(wide * 4)), meta=encoded(said)), "width")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop("meta.json"), "not those of a KV prompt"),
        (lambda content: content.update({"tensor.npy": npy(matrix())}), "more members"),
        (lambda content: content.update({"readme.txt": b"x"}), "more members"),
        (lambda content: content.update({"meta.json": b"[]"}), "not a JSON object"),
        (lambda content: content.update({"mixture.json": b"{}"}), "an object"),
    ],
)
def test_refuses_other_members(tmp_path: Path, change: Callable[[dict[str, bytes]], object], words: str) -> None:
    content = members(written(tmp_path))
    change(content)
    both_refuse(zipped(tmp_path / "v", content), words)


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    both_refuse(zipped(tmp_path / "v", members(written(tmp_path)), zipfile.ZIP_DEFLATED), "must be stored")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for at in (0, 120):
        data = bytearray(numbers())
        data[at : at + 4] = np.float32(np.nan).tobytes()
        assert "not finite" in refusal(of(tmp_path / "v", tensors=safetensors(good(), bytes(data))))


def test_a_changed_number_is_seen(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(numbers()[:16])] ^= 1
    path.write_bytes(content)
    assert "checksum" in refusal(path)
    said = described(content_sha256="0" * 64)
    assert "content_sha256" in refusal(of(tmp_path / "v", meta=encoded(said)))


def test_it_says_what_it_discloses() -> None:
    assert "keys and values: 3 positions of 2 layers of 1 x 2" in formats.file_disclosure(kv_prompt())


# In a mixture -------------------------------------------------------------------------------------------------------


def both() -> Mixture:
    return Mixture((component(0), kv_prompt(1)), np.array([0.25, 0.75]), metadata=Metadata(name="both"))


def test_a_mixture_of_both_kinds_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "m.mix.zip"
    formats.write_mixture(both(), path)
    content = members(path)
    assert list(content) == ["mixture.json", "components/0.zip", "components/1.kv.zip"]
    assert content["components/1.kv.zip"] == written(tmp_path, kv_prompt(1)).read_bytes()
    assert json.loads(content["mixture.json"])["sordino"]["format_version"] == 2
    found = formats.read_any(path)
    assert isinstance(found, Mixture)
    assert found.content_hash == both().content_hash
    assert [one.kind for one in found.components] == ["embedding prompt", "KV prompt"]
    seen = formats.peek(path)
    assert (seen.n_tokens, seen.d_model, seen.components) == (4, 8, 2)
    assert [part.kv for part in seen.parts] == [None, KVShape(2, 1, 2)]


def test_a_component_is_of_the_kind_that_its_name_says(tmp_path: Path) -> None:
    path = tmp_path / "m.mix.zip"
    formats.write_mixture(both(), path)
    content = members(path)
    kinds = {"components/0.zip": content["components/1.kv.zip"], "components/1.kv.zip": content["components/0.zip"]}
    for name, wrong in kinds.items():
        words = "not a native soft prompt" if name.endswith("0.zip") else "of a KV prompt"
        both_refuse(zipped(tmp_path / "v", content | {name: wrong}), words)


def test_a_mixture_of_version_1_has_no_kv_prompts(tmp_path: Path) -> None:
    formats.write_mixture(both(), tmp_path / "m.mix.zip")
    content = members(tmp_path / "m.mix.zip")
    said = json.loads(content["mixture.json"])
    said["sordino"]["format_version"] = 1
    both_refuse(zipped(tmp_path / "v", content | {"mixture.json": encoded(said)}), "components/1.zip")
