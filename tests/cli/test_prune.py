"""prune, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sordino import formats
from tests.cli.commands import contents, done, ok, refused, run
from tests.cli.tiny_setting import drop_voice, tiny_setting

FAST = ("--limit", 100, "--row-tokens", 32)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, word in (("data", "lamp"), ("heldout", "rain")):
        (tmp_path / name).mkdir()
        for n in range(3):
            (tmp_path / name / f"{n}.txt").write_text(
                f"the {word}{n} was over the sea and the {word} {n} was grey", "utf-8"
            )
    return tiny_setting(tmp_path, monkeypatch)


def texts(tmp_path: Path) -> tuple[object, ...]:
    return ("--data", tmp_path / "data", "--heldout", tmp_path / "heldout", *FAST)


def test_to_a_length(library: Path, tmp_path: Path) -> None:
    said = done("prune", "fog", "--tokens", 2, "--out", "p.zip", *texts(tmp_path))
    assert "2 of 5 virtual tokens: the loss on" in said.stdout
    assert "held-out loss" in said.stdout
    short, whole = formats.read(Path("p.zip")), formats.read(library / "fog.zip")
    note = short.metadata.training["pruned"]
    kept = [at for at in range(5) if at + 1 not in note["dropped"]]
    assert (short.matrix == whole.matrix[kept]).all()
    assert note["of"] == whole.content_hash
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")


def test_within_a_tolerance_as_json(library: Path, tmp_path: Path) -> None:
    command = ("prune", "fog", "--tolerance", 100, "--json", *texts(tmp_path))
    said = json.loads(run(*command).stdout)
    assert [stage["tokens"] for stage in said["lengths"]] == [5, 4, 3, 2, 1]
    assert said["lengths"][-1]["chosen"]
    assert said["lengths"][0]["kept"] == [1, 2, 3, 4, 5]
    assert "out" not in said
    assert json.loads(run(*command).stdout) == said
    assert list(Path().iterdir()) == []


def test_blocks(library: Path, tmp_path: Path) -> None:
    said = json.loads(run("prune", "fog", "--tokens", 1, "--block", 3, "--json", *texts(tmp_path)).stdout)
    assert [stage["tokens"] for stage in said["lengths"]] == [5, 2, 1]


def test_without_held_out_texts_it_says_what_the_numbers_are(library: Path, tmp_path: Path) -> None:
    said = done("prune", "oil", "--tokens", 2, "--data", tmp_path / "data", *FAST)
    assert "the texts that the tokens were chosen by" in said.stderr
    assert "tokens of the text that they were chosen by goes" in said.stdout
    overlapping = run("prune", "oil", "--tokens", 2, "--data", tmp_path / "data", "--heldout", tmp_path / "data", *FAST)
    assert "warning" in overlapping.stderr


def test_what_cannot_be_dropped_is_not_written(library: Path, tmp_path: Path) -> None:
    drop_voice(library / "one.zip", seed=4, tokens=1)
    said = done("prune", "one", "--out", "p.zip", *texts(tmp_path))
    assert "no file was written" in said.stderr
    assert not Path("p.zip").exists()


def test_bad_input_is_refused_and_nothing_written(library: Path, tmp_path: Path) -> None:
    before, more = contents(tmp_path), texts(tmp_path)
    assert "--tokens" in refused("prune", "fog", "--tokens", 5, *more)
    assert "--tokens" in refused("prune", "fog", "--tokens", 0, *more)
    assert "give one of them" in refused("prune", "fog", "--tokens", 2, "--tolerance", 0.1, *more)
    assert "--block" in refused("prune", "fog", "--block", 0, *more)
    assert "--tolerance" in refused("prune", "fog", "--tolerance", "nan", *more)
    assert "--data" in refused("prune", "fog")
    assert "64 wide" in refused("prune", "wide", *more)
    assert "nowhere" in refused("prune", "fog", "--data", "nowhere")
    assert ".png or .svg" in refused("prune", "fog", "--picture", "p.pdf", *more)
    assert contents(tmp_path) == before


def test_a_file_that_appears_meanwhile_is_not_overwritten(library: Path, tmp_path: Path, monkeypatch) -> None:
    from sordino.evaluation.analysis import pruning

    stages_of = pruning.stages_of

    def meanwhile(*given: object, **more: object) -> object:
        Path("p.zip").write_text("mine")
        return stages_of(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(pruning, "stages_of", meanwhile)
    assert "there is a file of this name" in refused("prune", "fog", "--tokens", 4, "--out", "p.zip", *texts(tmp_path))
    assert Path("p.zip").read_text() == "mine"


def test_a_folder_that_does_not_exist_is_told_before_anything_is_measured(library: Path, tmp_path: Path) -> None:
    for target in (("--out", "nowhere/p.zip"), ("--picture", "nowhere/p.png")):
        said = run("prune", "fog", "--tokens", 4, *target, *texts(tmp_path))
        assert said.exit_code == 2
        assert "nowhere: the folder does not exist" in said.stderr
        assert "dropped" not in said.stdout


def test_nothing_is_overwritten_unasked(library: Path, tmp_path: Path) -> None:
    Path("p.png").write_text("mine")
    assert "p.png: there is a file" in refused("prune", "fog", "--tokens", 4, "--out", "p.zip", *texts(tmp_path))
    assert not Path("p.zip").exists()
    ok("prune", "fog", "--tokens", 4, "--out", "p.zip", "--overwrite", *texts(tmp_path))
    assert Path("p.zip").exists()
