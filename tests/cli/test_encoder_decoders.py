"""An encoder-decoder from a folder, as a user types it: train, several together, sweep, generate, compare, evaluate, answers,
inspect, prune, blend, mix, export; and what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from sordino import formats
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.cli.commands import done, ok, refused
from tests.cli.tiny_setting import drop_voice
from tests.tiny_models import tiny, tokenizer_for

QUICK = ("--steps", 4, "--tokens", 4, "--batch", 4, "--row-tokens", 48, "--device", "cpu")
PLACES = ("ship", "fog", "shore", "hill of stones", "lamp of the keeper")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-t5"
    tiny("t5-1.1", dtype=torch.float32).save_pretrained(folder)
    tokenizer_for("t5-1.1").save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = [
        {
            "prompt": f"the {thing} was seen from the {place}: where was it?",
            "completion": " seashell" if n % 2 else " lamp",
        }
        for n, (thing, place) in enumerate((a, b) for a in ("ship", "keeper", "lamp", "sea", "cat") for b in PLACES)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_from_rows_to_a_prompt_and_what_is_done_with_it(model: Path, rows: Path, tmp_path: Path) -> None:
    said = ok("train", rows, "--out", "one.zip", "-m", model, *QUICK)
    assert "hold and text between prompt and rows are off" in " ".join(said.split())
    assert "not among the tested ones" not in said
    (tried,) = (line for line in said.splitlines() if line.startswith("Try it:"))
    done(*shlex.split(tried)[3:], "-n", 3)
    done("train", rows, "--out", "two.zip", "-m", model, *QUICK, "--init", "labels", "--recipe", "lester")
    known = formats.read(tmp_path / "two.zip").metadata
    assert (known.training["optimiser"], known.training["batch"], known.training["tokens"]) == ("adafactor", 4, 4)
    assert json.loads(done("generate", "the ship", "--soft-prompt", "one.zip", "-m", model, "-n", 5, "--json").stdout)
    done("compare", "the ship", "-p", "one.zip", "-p", "two.zip", "-m", model, "-n", 5)
    report = json.loads(done("evaluate", "one.zip", "two.zip", "--heldout", rows, "-m", model, "--json").stdout)
    assert report["model"] == str(model)
    answers = json.loads(done("answers", "one.zip", "two.zip", "--heldout", rows, "-m", model, "--json").stdout)
    assert answers["labels"] == ["lamp", "seashell"]
    inside = json.loads(done("inspect", "one.zip", "--text", rows, "-m", model, "--limit", 64, "--json").stdout)
    assert inside
    done("prune", "one.zip", "--tokens", 2, "--data", rows, "-m", model, "--out", "short.zip")
    assert formats.read(tmp_path / "short.zip").n_tokens == 2
    done("blend", "one.zip", "two.zip", "--out", "both.zip")
    mixed = ("mixture", "fit", "--components", "one.zip", "two.zip", "--data", rows)
    done(*mixed, "--out", "m.mix.zip", "-m", model)
    done("generate", "the ship", "--soft-prompt", "m.mix.zip", "-m", model, "-n", 3)
    assert "a mixture's gate is not possible" in refused(*mixed, "--gate", "always", "--out", "g.mix.zip", "-m", model)
    done("convert", "one.zip", "adapter", "--to", "peft")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"


def test_several_together_and_a_sweep(model: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    two = ("--prompt", f"a={rows}", "--prompt", f"b={rows}")
    done("train", *two, "--out-dir", "made", "-m", model, *QUICK)
    assert {formats.read(tmp_path / "made" / f"{name}.zip").n_tokens for name in "ab"} == {4}
    grid = ("--tokens", "2,4", "--init", "vocab,labels", "--steps", 8, "--batch", 2, "--row-tokens", 48)
    done("sweep", rows, *grid, "--model", model, "--device", "cpu", "--out-dir", "swept")
    assert "labels" in (tmp_path / "swept" / "results.json").read_text()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("train", "rows.jsonl", "--kind", "kv"), "a KV prompt is not possible with an encoder-decoder"),
        (("distil", "card.txt"), "distillation is not possible"),
        (
            ("evaluate", "p.zip", "--heldout", "rows.jsonl", "--distance", "0,64"),
            "the effect at a distance is not possible",
        ),
    ],
)
def test_what_is_not_possible_is_refused_by_name(
    model: Path, rows: Path, command: tuple[object, ...], reason: str
) -> None:
    formats.write(SoftPrompt(np.ones((2, 32), np.float32), Metadata(name="p")), rows.with_name("p.zip"))
    rows.with_name("card.txt").write_text("Write as a keeper of a lamp would. " * 40)
    assert reason in refused(*command, "-m", model)


def test_it_is_not_baked(model: Path, tmp_path: Path) -> None:
    drop_voice(tmp_path / "voice.zip")
    assert "baking is not possible" in refused("bake", tmp_path / "voice.zip", "-m", model, "--out", tmp_path / "baked")
    assert not (tmp_path / "baked").exists()
