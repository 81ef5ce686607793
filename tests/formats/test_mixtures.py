"""The file of a mixture: what is in it, and what is refused."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sordino import formats
from sordino.errors import BadInput, SoftPromptFileError
from sordino.prompts.mixture import Gate, Mixture
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.formats.makers import npy_bytes, zipped
from tests.formats.refusals import both_refuse, refusal
from tests.prompt_files import matrix, npy


def component(seed: int, tokens: int = 4, width: int = 8, **said: Any) -> SoftPrompt:
    return SoftPrompt(matrix(seed, tokens, width), Metadata(name=f"c{seed}", **said))


def mixture(**said: Any) -> Mixture:
    gate = Gate(matrix(9, 2, 8), np.array([0.1, -0.2], np.float32))
    return Mixture(
        (component(0), component(1, 6, placement="after_bos")),
        np.array([0.3, 0.7]),
        gate=gate,
        metadata=Metadata(name="both", base=BaseRef(d_model=8), **said),
    )


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(folder: Path) -> dict[str, bytes]:
    path = folder / "good.mix.zip"
    formats.write_mixture(mixture(), path, force=True)
    return members(path)


def said(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A mixture whose mixture.json was changed: `change` gets the `sordino` object."""
    content = written(folder)
    described = json.loads(content["mixture.json"])
    change(described["sordino"])
    return zipped(folder / "v.mix.zip", content | {"mixture.json": json.dumps(described).encode()})


def test_what_is_in_it(tmp_path: Path) -> None:
    content = written(tmp_path)
    assert list(content) == ["mixture.json", "components/0.zip", "components/1.zip", "gate.npy"]
    formats.write(component(1, 6, placement="after_bos"), tmp_path / "alone.zip")
    assert content["components/1.zip"] == (tmp_path / "alone.zip").read_bytes()
    assert np.array_equal(np.load(io.BytesIO(content["gate.npy"])), matrix(9, 2, 8))
    ours = json.loads(content["mixture.json"])["sordino"]
    assert list(ours) == ["format_version", "content_sha256", "mixture", "base"]
    assert [item["weight"] for item in ours["mixture"]["components"]] == [0.3, 0.7]


def test_its_headers_are_enough_for_a_list(tmp_path: Path) -> None:
    formats.write_mixture(mixture(), tmp_path / "m")
    seen = formats.peek(tmp_path / "m")
    assert (seen.format, seen.components, seen.n_tokens, seen.d_model) == ("mixture", 2, 6, 8)
    assert (seen.metadata.name, seen.size) == ("both", (tmp_path / "m").stat().st_size)


def test_a_soft_prompt_has_no_components(tmp_path: Path) -> None:
    formats.write(component(0), tmp_path / "v.zip")
    assert formats.peek(tmp_path / "v.zip").components == 0
    assert isinstance(formats.read_any(tmp_path / "v.zip"), SoftPrompt)


def test_where_one_soft_prompt_is_needed_it_is_refused_with_what_to_do(tmp_path: Path) -> None:
    formats.write_mixture(mixture(), tmp_path / "m.mix.zip")
    with pytest.raises(SoftPromptFileError, match=r"mixture of soft prompts.*2 components.*sordino show"):
        formats.read(tmp_path / "m.mix.zip")


def test_it_holds_one_mixture(tmp_path: Path) -> None:
    formats.write_mixture(mixture(), tmp_path / "m")
    assert formats.read_any(tmp_path / "m", index=0).content_hash == mixture().content_hash
    with pytest.raises(SoftPromptFileError, match="--index 1"):
        formats.read_any(tmp_path / "m", index=1)


def test_what_is_there_is_replaced_by_force_only(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"old")
    with pytest.raises(BadInput, match="--force"):
        formats.write_mixture(mixture(), path)
    with pytest.raises(BadInput, match="plain JSON"):
        formats.write_mixture(mixture(training={"x": object()}), path, force=True)
    assert path.read_bytes() == b"old"
    formats.write_mixture(mixture(), path, force=True)
    assert formats.detect(path) == "mixture"


def test_metadata_of_another_width_is_not_written(tmp_path: Path) -> None:
    wrong = mixture().with_metadata(base=BaseRef(d_model=9))
    with pytest.raises(BadInput, match="another width"):
        formats.write_mixture(wrong, tmp_path / "m")


def _set(*keys: object, value: object) -> Callable[[dict[str, Any]], None]:
    def change(ours: dict[str, Any]) -> None:
        at: Any = ours
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("format_version", value=3), "newer version"),
        (_set("format_version", value="1"), "format_version"),
        (_set("tensor_sha256", value="0" * 64), "unknown key 'tensor_sha256'"),
        (_set("placement", value="start"), "unknown key 'placement'"),
        (_set("more", value=1), "unknown key 'more'"),
        (_set("mixture", value=[]), "an object"),
        (_set("mixture", value={}), "sordino.mixture.rule"),
        (_set("mixture", "more", value=1), "unknown key 'more'"),
        (_set("mixture", "rule", value="mean"), "sequence, probabilities, logits, vote"),
        (_set("mixture", "rule", value=[]), "sequence, probabilities, logits, vote"),
        (_set("mixture", "components", value=[]), "1 to 16 objects"),
        (_set("mixture", "components", value=[{}] * 17), "1 to 16 objects"),
        (_set("mixture", "components", 0, value=5), "1 to 16 objects"),
        (_set("mixture", "components", 0, "more", value=5), "unknown key 'more'"),
        (_set("mixture", "components", 0, "file", value="../0.zip"), "components/0.zip"),
        (_set("mixture", "components", 1, "file", value="components/0.zip"), "components/1.zip"),
        (_set("mixture", "components", 0, "weight", value=-0.1), "0 to 1"),
        (_set("mixture", "components", 0, "weight", value=True), "0 to 1"),
        (_set("mixture", "components", 0, "weight", value=0.5), "sum to 1"),
        (_set("mixture", "components", 0, "tensor_sha256", value="0"), "hexadecimal"),
        (_set("mixture", "gate", "bias", value=[1]), "a number for each component"),
        (_set("mixture", "gate", "bias", value=[1, 1e39]), "list of numbers"),
        (_set("mixture", "gate", "file", value="x.npy"), "gate.npy"),
        (_set("base", "d_model", value=9), "base.d_model"),
        (lambda ours: ours["mixture"].pop("gate"), "members are not those"),
        (lambda ours: ours.pop("mixture"), "sordino.mixture"),
        (lambda ours: ours["mixture"]["components"][0].pop("weight"), "0 to 1"),
        (lambda ours: ours["mixture"]["components"][0].pop("file"), "components/0.zip"),
    ],
)
def test_refuses_what_is_no_mixture_json(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    both_refuse(said(tmp_path, change), words)


def test_needs_the_sordino_object(tmp_path: Path) -> None:
    content = written(tmp_path) | {"mixture.json": b'{"name": "v"}'}
    both_refuse(zipped(tmp_path / "v", content), "sordino")


@pytest.mark.parametrize("key", ["content_sha256", "tensor_sha256"])
def test_what_was_changed_is_seen_unless_its_hash_is_left_out(tmp_path: Path, key: str) -> None:
    def change(ours: dict[str, Any], value: str | None) -> None:
        holder = ours if key == "content_sha256" else ours["mixture"]["components"][1]
        holder.update({key: value}) if value else holder.pop(key)

    assert f"expected {key}" in refusal(said(tmp_path, lambda ours: change(ours, "0" * 64)))
    assert formats.read_any(said(tmp_path, lambda ours: change(ours, None))).content_hash == mixture().content_hash


def test_other_weights_are_another_mixture(tmp_path: Path) -> None:
    def change(ours: dict[str, Any]) -> None:
        for item, weight in zip(ours["mixture"]["components"], (0.5, 0.5), strict=True):
            item["weight"] = weight

    assert "content_sha256" in refusal(said(tmp_path, change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop("components/1.zip"), "members are not those"),
        (lambda content: content.pop("gate.npy"), "members are not those"),
        (lambda content: content.update({"tensor.npy": npy(matrix())}), "members are not those"),
        (lambda content: content.update({"readme.txt": b"x"}), "members are not those"),
        (lambda content: content.update({"components/0.zip": b"PK"}), "not a whole zip"),
        (lambda content: content.update({"gate.npy": npy(matrix(0, 3, 8))}), "other components"),
        (lambda content: content.update({"gate.npy": npy_bytes("<f4", (2, 1 << 39), b"")}), "does not agree"),
        (lambda content: content.update({f"components/{n}.zip": b"" for n in range(99)}), "more members"),
    ],
)
def test_refuses_other_members(tmp_path: Path, change: Callable[[dict[str, bytes]], object], words: str) -> None:
    content = written(tmp_path)
    change(content)
    both_refuse(zipped(tmp_path / "v", content), words)


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        ({"tensor.npy": npy(matrix(0, 4, 9)), "meta.json": b"{}"}, "different widths"),
        ({"tensor.npy": npy(matrix(0))}, "not a native soft prompt"),
        ({"tensor.npy": npy(matrix(0)), "meta.json": b"{}", "more": b""}, "not a native soft prompt"),
        ({"v/tensor.npy": npy(matrix(0)), "v/meta.json": b"{}"}, "not a native soft prompt"),
        ({"tensor.npy": npy(matrix(0)), "meta.json": b"[]"}, "not a JSON object"),
        ({"tensor.npy": npy_bytes("<f4", (5000, 8), b""), "meta.json": b"{}"}, "does not agree"),
        (
            {"tensor.npy": npy(matrix(0)), "meta.json": b'{"sordino": {"format_version": 1, "base": {"d_model": 9}}}'},
            "does not agree with the tensor",
        ),
        ({"mixture.json": b"{}"}, "a mixture in a mixture"),
    ],
)
def test_refuses_components_that_are_no_native_soft_prompts(
    tmp_path: Path, inner: dict[str, bytes], words: str
) -> None:
    content = written(tmp_path) | {"components/0.zip": zipped(tmp_path / "inner", inner).read_bytes()}
    both_refuse(zipped(tmp_path / "v", content), words)


def test_a_mixture_in_a_mixture_is_refused(tmp_path: Path) -> None:
    content = written(tmp_path)
    content["components/0.zip"] = (tmp_path / "good.mix.zip").read_bytes()
    both_refuse(zipped(tmp_path / "v", content), "a mixture in a mixture is not possible")


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    both_refuse(zipped(tmp_path / "v", written(tmp_path), zipfile.ZIP_DEFLATED), "must be stored")
    inner = {"tensor.npy": npy(matrix(0)), "meta.json": b"{}"}
    packed = zipped(tmp_path / "inner", inner, zipfile.ZIP_DEFLATED).read_bytes()
    both_refuse(zipped(tmp_path / "w", written(tmp_path) | {"components/0.zip": packed}), "stored")


def test_members_that_lie_in_one_another_are_refused(tmp_path: Path) -> None:
    """The last component holds the ones before it: sixteen of them would take sixteen times the file's size in memory."""
    content = written(tmp_path)
    outer = bytearray(zipped(tmp_path / "v", content).read_bytes())
    directory = outer.index(b"PK\x01\x02", outer.index(b"gate.npy"))
    entries = outer[directory:]
    at = entries.index(b"components/0.zip") - 46
    second = outer.index(b"PK\x03\x04", outer.index(b"components/0.zip") + len(content["components/0.zip"]))
    end = second + 30 + len("components/1.zip") + len(content["components/1.zip"])
    begin = outer.index(b"components/0.zip") + len("components/0.zip")
    struct.pack_into("<2L", entries, at + 20, end - begin, end - begin)
    (tmp_path / "v").write_bytes(outer[:directory] + entries)
    both_refuse(tmp_path / "v", "members overlap")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    bad = matrix(0)
    bad[1, 1] = np.nan
    inner = zipped(tmp_path / "inner", {"tensor.npy": npy(bad), "meta.json": b"{}"}).read_bytes()
    assert "not finite" in refusal(zipped(tmp_path / "v", written(tmp_path) | {"components/0.zip": inner}))
    gate = matrix(0, 2)
    gate[0, 0] = np.inf
    assert "not finite" in refusal(zipped(tmp_path / "w", written(tmp_path) | {"gate.npy": npy(gate)}))


def test_a_flipped_bit_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "m"
    formats.write_mixture(mixture(), path)
    content = bytearray(path.read_bytes())
    at = content.index(matrix(1, 6).tobytes()[:16])
    content[at] ^= 1
    path.write_bytes(content)
    assert "checksum" in refusal(path)


def test_what_it_discloses_is_of_the_whole_and_of_each_component() -> None:
    lines = formats.file_disclosure(mixture())
    assert "name: both" in lines
    assert "component 1, name: c1" in lines
