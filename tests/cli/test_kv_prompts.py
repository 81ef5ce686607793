"""KV prompts in every command that takes soft prompts, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sordino import formats
from sordino.prompts.kv_prompt import KVPrompt
from sordino.prompts.mixture import Mixture
from tests.cli.commands import ok, refused, run
from tests.cli.tiny_setting import tiny_llama, tiny_setting
from tests.prompts.kv_of import kv_of


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With `deep`, which does what `fog` does, and `deeper`."""
    folder = tiny_setting(tmp_path, monkeypatch)
    fog = formats.read(folder / "fog.zip")
    made = kv_of(tiny_llama(), fog)
    made.with_metadata(name="Deep").save(folder / "deep.kv.zip")
    twice = KVPrompt(made.flat_PW * 2, made.shape, made.last_D, made.metadata)
    twice.save(folder / "deeper.kv.zip")
    return folder


def test_list_and_show(library: Path) -> None:
    assert "KV" in ok("list")
    listed = {one["name"]: one["kind"] for one in json.loads(run("list", "--json").stdout)}
    assert listed == {
        "deep": "KV prompt",
        "deeper": "KV prompt",
        "fog": "embedding prompt",
        "oil": "embedding prompt",
        "wide": "embedding prompt",
    }
    shape = tiny_llama().kv_shape
    assert f"5 tokens x {shape}" in ok("show", "deep")
    shown = json.loads(run("show", "deep", "--model", "tiny", "--json").stdout)
    assert (shown["kind"], shown["format"], shown["fit"]["kind"]) == ("KV prompt", "kv", "unknown")
    assert shown["kv"]["layers"] == shape.layers


def test_generate_gives_what_the_embedding_prompt_gives(library: Path) -> None:
    ask = ("the lamp", "--max-tokens", 8, "--temperature", 0)
    texts = [run("generate", *ask, *more).stdout for more in (("-p", "deep"), ("-p", "fog"), ())]
    assert texts[0] == texts[1] != texts[2]
    assert run("generate", *ask[1:], "-p", "deep").stdout == run("generate", *ask[1:], "-p", "fog").stdout != "\n"


def test_convert(library: Path) -> None:
    ok("convert", "deep", "v.kv.zip")
    assert Path("v.kv.zip").read_bytes() == (library / "deep.kv.zip").read_bytes()
    for to in ("peft", "cartridge"):
        ok("convert", "deep", to, "--to", to)
        assert formats.read_any(Path(to)).content_hash == formats.read_any(library / "deep.kv.zip").content_hash
    for out in ("v.zip", "v.npy", "v.json", "v.safetensors"):
        assert "a KV prompt has no matrix" in refused("convert", "deep", out)
        assert not Path(out).exists()
    assert "no keys and values" in refused("convert", "fog", "f.kv.zip")


def test_blend(library: Path) -> None:
    assert "Written: c.kv.zip (5 virtual tokens)" in run("blend", "deep", "deeper", "--out", "c.kv.zip").stderr
    assert isinstance(formats.read_any(Path("c.kv.zip")), KVPrompt)
    assert "written as .kv.zip" in refused("blend", "deep", "deeper", "--out", "c.zip")
    assert "different kinds" in refused("blend", "deep", "fog", "--out", "d.zip")
    Path("t.txt").write_text("the lamp was over the sea", "utf-8")
    path = json.loads(run("blend", "deep", "deeper", "--heldout", "t.txt", "--points", 3, "--json").stdout)["path"]
    assert len(path["texts"][0]["nll"]) == 3
    alone = json.loads(run("evaluate", "deep", "--heldout", "t.txt", "--json").stdout)["heldout"]["conditions"][0]
    assert path["texts"][0]["nll"][0] == pytest.approx(alone["nll"], abs=1e-6)


def test_inspect_shows_norms_and_no_words(library: Path) -> None:
    text = ok("inspect", "deep", "fog", "--quick")
    assert "keys of a text" in text
    assert "no nearest words" in " ".join(text.split())
    said = json.loads(run("inspect", "deep", "--quick", "--json").stdout)["soft_prompts"][0]
    assert (said["kind"], len(said["layers"])) == ("KV prompt", tiny_llama().n_layers)
    assert all(value > 0 for layer in said["layers"] for value in layer.values())
    assert "no words to draw" in refused("inspect", "deep", "--quick", "--picture", "p.png")


def test_an_ensemble_of_both_kinds(library: Path) -> None:
    ok("ensemble", "build", "deep", "oil", "--out", "both.mix.zip")
    found = formats.read_any(Path("both.mix.zip"))
    assert isinstance(found, Mixture)
    assert [one.kind for one in found.components] == ["KV prompt", "embedding prompt"]
    assert "mixture of 2" in ok("show", "both.mix.zip")


def test_answers_and_their_ensembles(library: Path) -> None:
    """Of a KV prompt and of the embedding prompt that it does the work of, alone and together."""
    rows = [{"prompt": f"the sea {n}:", "completion": (" good", " bad")[n % 2]} for n in range(12)]
    Path("held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    for measure, more in (("nll", ()), ("f1", ("--free", "--max-tokens", 3))):
        said = json.loads(run("answers", "deep", "fog", "--heldout", "held.jsonl", "--json", *more).stdout)
        values = {line["label"]: line[measure]["value"] for line in said["sets"][0]["lines"] if measure in line}
        assert values["deep"] == pytest.approx(values["fog"], abs=1e-5)
    assert "ensemble mean of probabilities" in ok("answers", "deep", "fog", "--heldout", "held.jsonl")


def test_training_goes_on_from_a_kv_prompt(library: Path) -> None:
    Path("t.txt").write_text("the lamp was over the sea and the keeper wrote. " * 40, "utf-8")
    train = ("train", "t.txt", "--init", "file:deep", "--tokens", 5, "--steps", 4, "--row-tokens", 16)
    ok(*train, "--kind", "kv", "--out", "v.kv.zip")
    assert formats.read_single(Path("v.kv.zip")).metadata.training["init"] == "the KV prompt 'Deep'"
    assert "can start only one of its own kind" in refused(*train, "--out", "v.zip")


def test_training_learns_the_models_own_answers(library: Path) -> None:
    Path("t.txt").write_text("the lamp was over the sea and the keeper wrote. " * 40, "utf-8")
    train = ("train", "t.txt", "--kind", "kv", "--tokens", 2, "--steps", 2, "--row-tokens", 96, "--measure", "none")
    ok(*train, "--answers", 0.5, "--out", "v.kv.zip")
    ok(*train, "--answers", "off", "--out", "w.kv.zip")
    ok(*train, "--answers", 1.5, "--out", "x.kv.zip")
    recipes = [formats.read_single(Path(f"{name}.kv.zip")).metadata.training for name in "vwx"]
    assert [recipe["answers"] for recipe in recipes] == [0.5, 0.0, 1.5]
    assert [Path(f"{name}.kv.run/answers.jsonl").exists() for name in "vwx"] == [True, False, True]
    assert "--answers" in refused(*train, "--answers", "some", "--out", "y.kv.zip")
    assert "--answers: out of range; expected 0 to 10, got 11" in refused(*train, "--answers", 11, "--out", "y.kv.zip")


def test_what_needs_a_matrix_is_refused_by_name(library: Path) -> None:
    needs = "a KV prompt, where an embedding prompt is needed"
    Path("t.txt").write_text("the lamp was over the sea", "utf-8")
    assert needs in refused("sources", "deep", "fog")
    assert needs in refused("prune", "deep", "--data", "t.txt", "--heldout", "t.txt", "--tokens", 2, "--out", "p.zip")
