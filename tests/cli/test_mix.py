"""`sordino mixture fit`: soft prompts and texts in, a mixture and its numbers out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sordino import formats
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import BaseRef, SoftPrompt
from sordino.texts.pieces import data_hash
from sordino.texts.reading import read_pieces
from sordino.texts.splits import split_pieces
from tests.cli.commands import contents, done, ok, refused, run
from tests.cli.tiny_setting import drop_voice, tiny_setting

FAST = ("--row-tokens", 32, "--context-tokens", 8)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lines = [{"prompt": f"Say {n % 7}:", "completion": f" the sea {n} and the lamp {n * 7 % 11}"} for n in range(60)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return tiny_setting(tmp_path, monkeypatch)


def command(tmp_path: Path, *more: object, out: object = "m.mix.zip") -> tuple[object, ...]:
    return (
        "mixture",
        "fit",
        "--components",
        "fog",
        "oil",
        "--data",
        tmp_path / "data.jsonl",
        "--out",
        out,
        *FAST,
        *more,
    )


def read(path: Path) -> Mixture:
    found = formats.read_any(path)
    assert isinstance(found, Mixture)
    return found


def test_the_table_says_what_it_means_and_the_file_holds_the_weights(library: Path, tmp_path: Path) -> None:
    text = ok(*command(tmp_path))
    for part in (
        "fog",
        "oil",
        "the best component (chosen on the training texts)",
        "the components' mean loss",
        "ensemble: equal weights, token by token",
        "mixture: equal weights",
        "mixture: fitted weights",
        "mixture: weights by the text (gate)",
        "lower is better",
        "95 % intervals, drawn by piece",
        "components of equal weight",
        "won:",
        "Written:",
        "sordino generate",
    ):
        assert part in text, part
    made = read(Path("m.mix.zip"))
    assert [prompt.n_tokens for prompt in made.components] == [5, 3]
    assert made.metadata.name == "m"
    assert made.metadata.training["method"] == "em"
    assert made.metadata.heldout["nll"].keys() >= {"best_component", "uniform_ensemble", "mixture"}


def test_json_has_all_of_it_and_is_the_same_again(library: Path, tmp_path: Path) -> None:
    said = json.loads(run(*command(tmp_path, "--json", "--gate", "never")).stdout)
    assert said["gate"] is False
    assert said["gate_won"] is None
    assert sum(said["weights"]) == pytest.approx(1)
    assert [line["label"] for line in said["lines"][:2]] == ["fog", "oil"]
    first = Path("m.mix.zip").read_bytes()
    assert json.loads(run(*command(tmp_path, "--json", "--gate", "never", "--overwrite")).stdout) == said
    assert Path("m.mix.zip").read_bytes() == first


def test_components_may_be_given_either_way(library: Path, tmp_path: Path) -> None:
    ok(*command(tmp_path))
    ok(
        *("mixture", "fit", "--components", "fog", "--components", "oil", "--data", tmp_path / "data.jsonl"),
        *("--out", "n.mix.zip", *FAST),
    )
    assert read(Path("m.mix.zip")).content_hash == read(Path("n.mix.zip")).content_hash


def test_a_gate_and_a_picture_where_they_are_asked_for(library: Path, tmp_path: Path) -> None:
    ok(*command(tmp_path, "--gate", "always", "--picture", "m.png", "--name", "Both", "--author", "Ines"))
    made = read(Path("m.mix.zip"))
    assert made.gate is not None
    assert (made.metadata.name, made.metadata.author) == ("Both", "Ines")
    assert Path("m.png").read_bytes().startswith(b"\x89PNG")


def test_joint_training_from_excerpts(library: Path, tmp_path: Path) -> None:
    fit = ("mixture", "fit", "--joint", 2, "--tokens", 4, "--steps", 4, "--data", tmp_path / "data.jsonl", "--seed", 5)
    text = ok(*fit, "--out", "j.mix.zip", *FAST)
    assert "Training 2 soft prompts together, from excerpts of the training texts" in text
    made = read(Path("j.mix.zip"))
    assert [prompt.n_tokens for prompt in made.components] == [4, 4]
    assert [prompt.metadata.name for prompt in made.components] == ["j 1", "j 2"]
    assert made.metadata.training["method"] == "joint"
    # What they were trained on can be told later: see `mixture.contamination`.
    assert [prompt.metadata.training["seed"] for prompt in made.components] == [5, 5]
    assert json.loads(run(*fit, "--out", "k.mix.zip", *FAST, "--json").stdout)["weights"]


def test_components_may_be_kv_prompts(library: Path, tmp_path: Path) -> None:
    fit = ("mixture", "fit", "--data", tmp_path / "data.jsonl", "--gate", "never", *FAST)
    text = ok(*fit, "--joint", 2, "--kind", "kv", "--tokens", 4, "--steps", 4, "--out", "j.mix.zip")
    assert "Training 2 soft prompts together" in text
    made = read(Path("j.mix.zip"))
    assert [(prompt.kind, prompt.n_tokens) for prompt in made.components] == [("KV prompt", 4)] * 2
    formats.write(made.components[0], Path("one.kv.zip"))
    both = ("--components", "one.kv.zip", "fog")
    ok(*fit, *both, "--out", "m.mix.zip")
    assert read(Path("m.mix.zip")).components[0].content_hash == made.components[0].content_hash
    ok(*fit, *both, "--joint", 2, "--steps", 2, "--out", "k.mix.zip", "--force")
    kept = read(Path("k.mix.zip"))
    assert [prompt.kind for prompt in kept.components] == ["KV prompt", "embedding prompt"]
    assert "the components already have a kind" in refused(
        *fit, *both, "--joint", 2, "--kind", "kv", "--out", "l.mix.zip"
    )
    assert "--joint" in refused(*fit, *both, "--kind", "kv", "--out", "l.mix.zip")


def test_joint_training_from_given_soft_prompts(library: Path, tmp_path: Path) -> None:
    ok(*command(tmp_path, "--joint", 2, "--steps", 4, "--gate", "never"))
    made = read(Path("m.mix.zip"))
    given = formats.read(library / "fog.zip")
    assert isinstance(given, SoftPrompt)
    assert [prompt.n_tokens for prompt in made.components] == [5, 3]
    assert "fog" in made.metadata.training["init"]


def test_bad_input_is_refused_and_nothing_is_written(library: Path, tmp_path: Path) -> None:
    data = ("--data", tmp_path / "data.jsonl")
    fit = ("mixture", "fit", *FAST)
    (tmp_path / "long.txt").write_text("the keeper wrote of the sea " * 400, encoding="utf-8")
    before = contents(tmp_path)
    to = ("--out", "m.mix.zip")
    assert "--components" in refused(*fit, *data, *to)
    assert "64 wide" in refused(*fit, "fog", "wide", *data, *to)
    assert "given twice" in refused(*fit, "fog", "fog", *data, *to)
    assert "did you mean fog" in refused(*fit, "fogg", *data, *to)
    assert "NAME.mix.zip" in refused(*fit, "fog", *data, "--out", "m.zip")
    assert "nowhere" in refused(*fit, "fog", "--data", "nowhere", *to)
    assert "a --data of its own" in refused(*fit, "fog", *data, tmp_path / "long.txt", *to)
    assert "make it first" in refused(*fit, "fog", *data, "--out", "no/m.mix.zip")
    assert "give --joint too" in refused(*fit, "fog", *data, *to, "--steps", 3)
    assert "--joint" in refused(*fit, *data, *to, "--joint", 17)
    assert "--components" in refused(*fit, "fog", "oil", *data, *to, "--joint", 3)
    assert "--tokens" in refused(*fit, "fog", *data, *to, "--joint", 1, "--tokens", 9)
    assert "--steps" in refused(*fit, *data, *to, "--joint", 2, "--steps", 0)
    assert "--context-tokens" in refused(*fit, "fog", *data, *to, "--context-tokens", 32)
    assert "lower --row-tokens" in refused(*fit, "fog", "--data", tmp_path / "long.txt", *to, "--row-tokens", 256)
    assert ".png" in refused(*fit, "fog", *data, *to, "--picture", "m.jpg")
    assert contents(tmp_path) == before


def test_nothing_is_overwritten_without_being_told(library: Path, tmp_path: Path) -> None:
    Path("m.mix.zip").write_bytes(b"mine")
    assert "--overwrite" in refused(*command(tmp_path))
    assert Path("m.mix.zip").read_bytes() == b"mine"
    ok(*command(tmp_path, "--overwrite", "--gate", "never"))
    # And a mixture is no component of another.
    fit = ("mixture", "fit", "fog", "m.mix.zip", "--data", tmp_path / "data.jsonl", "--out", "n.mix.zip", *FAST)
    assert "a mixture of soft prompts, where one soft prompt is needed" in refused(*fit)
    Path("m.png").write_bytes(b"mine")
    assert "m.png: there is a file" in refused(*command(tmp_path, "--picture", "m.png", out="o.mix.zip"))


def test_a_prompt_of_another_model_needs_force(library: Path, tmp_path: Path) -> None:
    drop_voice(library / "gptj.zip", seed=5, base=BaseRef(id="x/gptj", family="gptj", d_model=32))
    fit = ("mixture", "fit", "fog", "gptj", "--data", tmp_path / "data.jsonl", "--out", "m.mix.zip", *FAST)
    assert "--force" in refused(*fit)
    forced = done(*fit, "--force")
    assert "warning: gptj" in forced.stderr


def test_soft_prompts_in_two_places_are_not_trained_together(library: Path, tmp_path: Path) -> None:
    other = formats.read(drop_voice(library / "behind.zip", seed=7)).with_metadata(placement="after_bos")
    formats.write(other, library / "behind.zip", force=True)
    fit = ("mixture", "fit", "fog", "behind", "--data", tmp_path / "data.jsonl", "--out", "m.mix.zip", *FAST)
    assert "one placement" in refused(*fit, "--joint", 2, "--steps", 2)
    ok(*fit)


def test_what_no_library_takes_is_no_name_for_a_mixture(library: Path, tmp_path: Path) -> None:
    assert "reserves" in refused(*command(tmp_path, out="con.mix.zip"))


def test_a_component_that_was_trained_on_what_is_held_out_is_told(library: Path, tmp_path: Path) -> None:
    pieces = read_pieces([tmp_path / "data.jsonl"]).pieces

    def trained(seed: int) -> None:
        splits = split_pieces(pieces, heldout=None, seed=seed)
        recipe = {"seed": seed, "data_hash": data_hash(splits.train + splits.validation)}
        file = library / "fog.zip"
        formats.write(formats.read(file).with_metadata(training=recipe), file, to="kobold", force=True)

    trained(3)
    said = done(*command(tmp_path, "--seed", 5))
    (line,) = [line for line in said.stderr.splitlines() if "was trained on texts that are held out" in line]
    assert line.startswith("warning: fog ")
    assert "--heldout" in line
    assert "--seed" in line
    again = done(*command(tmp_path, "--seed", 3, "--overwrite"))
    assert "held out here" not in again.stderr
