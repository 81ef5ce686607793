"""blend, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sordino import formats
from sordino.cli.blend import parted
from sordino.errors import BadInput
from sordino.prompts.soft_prompt import BaseRef
from tests.cli.commands import contents, done, ok, refused
from tests.cli.tiny_setting import drop_voice, tiny_setting

FAST = ("--limit", 100, "--row-tokens", 32)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for voice, word in (("keeper", "lamp"), ("noir", "rain")):
        folder = tmp_path / voice / "heldout"
        folder.mkdir(parents=True)
        for n in range(3):
            (folder / f"{n}.txt").write_text(f"the {word}{n} was over the sea and the {word} was grey{n}", "utf-8")
    folder = tiny_setting(tmp_path, monkeypatch)
    drop_voice(folder / "tar.zip", seed=7)
    return folder


def held(tmp_path: Path) -> tuple[object, ...]:
    return ("--heldout", tmp_path / "keeper/heldout", "--heldout", tmp_path / "noir/heldout", *FAST)


def test_a_blend_is_written_and_says_what_it_is_of(library: Path) -> None:
    said = done("blend", "fog", "0.7", "tar", "0.3", "--out", "c.zip")
    assert "Written: c.zip (5 virtual tokens)" in said.stderr
    made, fog, tar = (formats.read(path) for path in (Path("c.zip"), library / "fog.zip", library / "tar.zip"))
    np.testing.assert_allclose(made.matrix, 0.7 * fog.matrix + 0.3 * tar.matrix, atol=1e-6)
    assert [part["weight"] for part in made.metadata.training["blend"]["of"]] == [0.7, 0.3]
    assert "blend.of" in ok("show", "c.zip")


def test_without_weights_they_are_equal_and_a_name_is_taken(library: Path) -> None:
    ok("blend", "fog", "tar", "--out", "c.zip", "--name", "Fog on tar", "--how", "spherical")
    made = formats.read(Path("c.zip"))
    assert made.metadata.name == "Fog on tar"
    assert [part["weight"] for part in made.metadata.training["blend"]["of"]] == [0.5, 0.5]


def test_all_the_weight_on_one_is_that_one(library: Path) -> None:
    ok("blend", "fog", "1", "tar", "0", "--out", "c.zip")
    assert formats.read(Path("c.zip")).content_hash == formats.read(library / "fog.zip").content_hash


def test_the_way_between_two(library: Path, tmp_path: Path) -> None:
    said = done("blend", "fog", 0.7, "tar", 0.3, "--out", "c.zip", "--points", 3, *held(tmp_path))
    assert "loss on keeper/heldout" in said.stdout
    rows = [line.split() for line in said.stdout.splitlines()]
    assert [row[:2] for row in rows if row and row[0] in ("1.00", "0.70", "0.50", "0.00")] == [
        ["1.00", "0.00"], ["0.70", "0.30"], ["0.50", "0.50"], ["0.00", "1.00"],
    ]  # fmt: skip
    assert next(row for row in rows if row[:1] == ["0.70"])[-1] == "written"
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")
    assert Path("c.zip").exists()


def test_the_way_alone_as_json(library: Path, tmp_path: Path) -> None:
    said = done("blend", "fog", "tar", "--points", 2, "--json", *held(tmp_path))
    path = json.loads(said.stdout)["path"]
    assert path["shares_of_second"] == [0, 1]
    assert [text["text"] for text in path["texts"]] == ["keeper/heldout", "noir/heldout"]
    assert list(Path().iterdir()) == []


def test_bad_input_is_refused_and_nothing_written(library: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    out = ("--out", "c.zip")
    assert "fog: 5, oil: 3; shorten the longer ones" in refused("blend", "fog", "oil", *out)
    assert "different base models" in refused("blend", "fog", "wide", *out)
    assert "two soft prompts or more" in refused("blend", "fog", *out)
    assert "--name" in refused("blend", "fog", "tar", "--name", "x", "--heldout", tmp_path)
    assert "a concatenation has no weights" in refused("blend", "fog", 1, "oil", 2, "--how", "concatenate", *out)
    assert "tar: this one has no weight" in refused("blend", "fog", 1, "tar", *out)
    assert "a weight follows its soft prompt" in refused("blend", 0.5, "fog", "tar", *out)
    assert "not weights" in refused("blend", "fog", 0, "tar", 0, *out)
    assert "given twice" in refused("blend", "fog", "fog", *out)
    assert "give --out, --heldout or both" in refused("blend", "fog", "tar")
    assert "--points" in refused("blend", "fog", "tar", "--points", 5, *out)
    assert "written as .zip" in refused("blend", "fog", "tar", "--out", "c.npy")
    assert "written as .zip" in refused("blend", "fog", "tar", "--out", "c.mix.zip")
    assert ".png or .svg" in refused("blend", "fog", "tar", *out, "--picture", "c.gif", *held(tmp_path))
    assert "losses are measured between two soft prompts" in refused(
        "blend", "fog", "oil", "--how", "concatenate", *held(tmp_path)
    )
    assert "nowhere" in refused("blend", "fog", "tar", *out, "--heldout", "nowhere")
    assert "given twice" in refused("blend", "fog", "tar", *out, "--heldout", tmp_path, "--heldout", tmp_path)
    assert contents(tmp_path) == before


def test_prompts_of_another_model_are_refused(library: Path, tmp_path: Path) -> None:
    for name in ("gptj", "gptk"):
        drop_voice(library / f"{name}.zip", seed=5, base=BaseRef(id="x/gptj", family="gptj", d_model=32))
    assert "--force" in refused("blend", "gptj", "gptk", "--out", "c.zip", *held(tmp_path))
    assert "different base models" in refused("blend", "gptj", "gptk", drop_voice(
        library / "other.zip", seed=6, base=BaseRef(id="x/llama", family="llama", d_model=32)), "--out", "c.zip")  # fmt: skip


def test_nothing_is_overwritten_unasked(library: Path, tmp_path: Path) -> None:
    for name in ("c.zip", "c.png"):
        Path(name).write_text("mine")
        assert "there is a file of this name" in refused("blend", "fog", "tar", "--out", "c.zip", *held(tmp_path))
        assert Path(name).read_text() == "mine"
        assert not (name == "c.png" and Path("c.zip").exists())
        if name == "c.zip":
            Path(name).unlink()
    ok("blend", "fog", "tar", "--out", "c.zip", "--overwrite", "--points", 2, *held(tmp_path))
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")


def test_names_and_weights() -> None:
    assert parted(["a", "0.7", "b", "1e-1"]) == (["a", "b"], [0.7, 0.1])
    assert parted(["a", "b", "c"]) == (["a", "b", "c"], [])
    for bad in (["1", "a"], ["a", "1", "2", "b", "1"], ["a", "1", "b"]):
        with pytest.raises(BadInput):
            parted(bad)
