"""sordino sweep on a tiny model, with real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sordino import formats
from sordino.training import loop
from sordino.training.config import TextPaths, TrainConfig
from sordino.training.sweep import execute, running
from sordino.training.sweep.grid import Spec
from tests.cli.commands import contents, ok, refused, run
from tests.log_texts import stopping, write_log
from tests.tiny_models import tiny_base

QUICK = ("--steps", 16, "--batch", 2, "--row-tokens", 16, "--out-dir", "out")
GRID = ("--tokens", "2,4", "--lr", "0.1,0.5", "--init", "vocab,random")


@pytest.fixture(autouse=True)
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bases = {name: tiny_base(family, dtype=torch.float32) for name, family in (("smollm2", "llama"), ("other", "gpt2"))}
    monkeypatch.setattr("sordino.cli.sweep.loaded_model", lambda name, *_, **__: bases[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    write_log(tmp_path / "log")


def results(folder: str = "out") -> dict:
    return json.loads(Path(folder, "results.json").read_text())


def test_a_winner_a_table_plots_and_all_results() -> None:
    said = ok("sweep", "log", *GRID, *QUICK)
    found = results()
    (made,) = found["models"]
    assert len(made["runs"]) == 8
    ends = {run["name"]: (run["why"], run["steps"]) for run in made["runs"]}
    assert sorted(ends.values()) == [("pruned", 2)] * 4 + [("pruned", 4)] * 2 + [("pruned", 8), ("steps", 16)]
    assert found["rows_trained"] / found["rows_of_the_full_grid"] < 0.4
    winner = formats.read(Path("out/winner.zip"))
    assert winner.n_tokens == found["winner"]["tokens"]
    assert winner.metadata.training["lr"] == found["winner"]["lr"]
    assert winner.metadata.heldout["nll"]["no_prompt"] > 0
    assert "8 runs of 16 steps" in said
    assert "What that says about arXiv 2104.08691" in said
    assert "cannot be said" in said


def test_the_full_grid_and_its_plots_on_two_models() -> None:
    ok("sweep", "log", "--tokens", "2,24", "--init", "vocab,random", "--model", "smollm2,other", "--full", *QUICK)
    found = results()
    assert [model["model"] for model in found["models"]] == ["smollm2", "other"]
    runs = [run for model in found["models"] for run in model["runs"]]
    assert {run["why"] for run in runs} == {"steps"}
    assert all(run["heldout"]["nll"] > 0 for run in runs)
    assert {path.name for path in Path("out").glob("*.png")} == {
        f"heldout-by-{factor}.png" for factor in ("model", "tokens", "init")
    }
    assert {claim["verdict"] for claim in found["claims"]} <= {"held", "did not hold", "cannot be said"}
    assert len(found["claims"]) == 5


def test_the_kind_is_a_factor_and_the_winner_has_its_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    both = ("--kind", "embedding,kv", "--tokens", 3, "--init", "vocab", "--seed", "0,1", "--full", *QUICK)
    said = ok("sweep", "log", *both)
    assert "embedding" in said
    found = results()
    runs = found["models"][0]["runs"]
    assert [(run["choice"]["kind"], run["choice"]["lr"]) for run in runs] == [("embedding", 0.25)] * 2 + [
        ("kv", 0.1)
    ] * 2
    assert {path.name for path in Path("out").glob("*.png")} == {"heldout-by-kind.png", "heldout-by-seed.png"}
    # By chance an embedding prompt won: a KV prompt's file has another ending, and the old one goes.
    ok("sweep", "log", "--kind", "kv", "--tokens", "2,3", "--init", "vocab", *QUICK, "--overwrite")
    assert formats.read_single(Path("out/winner.kv.zip")).kind == "KV prompt"
    assert formats.read_single(Path("out/1-smollm2/best.kv.zip")).metadata.heldout["nll"]["no_prompt"] > 0
    assert not list(Path("out").rglob("winner.zip")) + list(Path("out").rglob("best.zip"))
    assert "there is a sweep here" in refused("sweep", "log", "--kind", "embedding", *QUICK)


def test_what_an_earlier_sweep_won_is_not_taken_for_a_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --overwrite the old winner and plots go, as the new sweep may have none; of models it is not about, too."""
    ok("sweep", "log", "--tokens", "2,3", "--init", "vocab", *QUICK)
    Path("out/1-smollm2").rename("out/2-another")

    def stopped(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr(execute, "train_members", stopped)
    ok("sweep", "log", "--tokens", 3, "--init", "vocab", *QUICK, "--overwrite")
    assert not list(Path("out").rglob("winner.zip"))
    assert not list(Path("out").rglob("best.zip"))
    assert not list(Path("out").rglob("results.json"))
    assert not list(Path("out").rglob("heldout-by-*.png"))


def test_a_sweep_that_failed_before_its_first_step_is_not_in_the_way() -> None:
    assert "nowhere" in refused("sweep", "log", "--tokens", 2, "--init", "file:nowhere", *QUICK)
    ok("sweep", "log", "--tokens", 2, "--init", "vocab", *QUICK)


def test_a_file_that_is_not_a_sweeps_is_not_overwritten() -> None:
    Path("out").mkdir()
    Path("out/winner.zip").write_text("mine")
    assert "winner.zip" in refused("sweep", "log", "--tokens", 2, "--init", "vocab", *QUICK)
    assert Path("out/winner.zip").read_text() == "mine"


def test_a_sweep_knows_a_linked_models_folder_again(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    spec = Spec(("link",), ("embedding",), (2,), (0.25,), ("vocab",), ("plain",), (0,), TrainConfig())
    asked = execute.Sweep(spec, TextPaths((tmp_path / "log",)), tmp_path / "out")
    execute.store_sweep(asked)
    again = execute.stored_sweep(tmp_path / "out")
    assert again.folder_of(again.spec.model[0]) == asked.folder_of("link")


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_is_what_generators_take(seed: int) -> None:
    assert "--seed" in refused("sweep", "log", "--tokens", 2, "--init", "random", "--seed", seed, *QUICK)


def test_a_runs_seed_does_not_change_what_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = running.train_group
    monkeypatch.setattr(
        running, "train_group", lambda base, group, **k: seen.extend(group.runs) or real(base, group, **k)
    )
    ok("sweep", "log", "--tokens", 2, "--init", "vocab", "--seed", "0,1,2", *QUICK)
    assert len(seen) == 3
    assert len({run.data.data_hash for run in seen}) == 1
    assert len({tuple(run.data.train) for run in seen}) == 1
    assert len({run.config.seed for run in seen}) == 3


def test_runs_that_begin_alike_choose_their_first_matrix_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from sordino.training import run

    calls = []
    real = run.initialise
    monkeypatch.setattr(run, "initialise", lambda base, config, *a: calls.append(config) or real(base, config, *a))
    ok("sweep", "log", "--tokens", "2,4", "--lr", "0.1,0.2,0.5", "--method", "plain,residual", *QUICK)
    assert len(calls) == 2


@pytest.mark.parametrize("kinds", ["embedding", "embedding,kv"])
def test_a_stopped_sweep_goes_on_to_the_same_results(monkeypatch: pytest.MonkeyPatch, kinds: str) -> None:
    grid = (*GRID, "--kind", kinds)
    ok("sweep", "log", *grid, *QUICK)
    Path("out").rename("whole")
    with monkeypatch.context() as patch:
        patch.setattr(running, "train_group", stopping(running.train_group, after=5))
        said = ok("sweep", "log", *grid, *QUICK)
    assert "Go on with: sordino sweep --resume out" in said
    before = contents(Path("out"))
    assert "there is a sweep here" in refused("sweep", "log", *GRID, *QUICK)
    assert contents(Path("out")) == before
    ok("sweep", "--resume", "out")
    whole, cut = results("whole"), results("out")
    for found in (whole, cut):
        for model in found["models"]:
            del model["seconds"]
    assert whole == cut
    first, second = (next(Path(folder).glob("winner*.zip")) for folder in ("whole", "out"))
    assert formats.read_single(first).content_hash == formats.read_single(second).content_hash


def test_a_model_that_is_done_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ok("sweep", "log", "--tokens", "2,4", "--init", "vocab", *QUICK)
    before = results()
    monkeypatch.setattr("sordino.cli.sweep.loaded_model", lambda *_, **__: pytest.fail("a model was loaded"))
    ok("sweep", "--resume", "out")
    assert results() == before


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing() -> None:
    said = ok("sweep", "log", *GRID, *QUICK, "--dry-run")
    assert "8 runs of 16 steps" in said
    # By chance one model alone.
    assert "1 run of 16 steps" in ok("sweep", "log", *QUICK, "--model", "smollm2,other", "--random", 1, "--dry-run")
    assert not Path("out").exists()


def test_a_pass_is_as_large_as_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU passes grow to what its memory holds, unless --pass-tokens says otherwise."""
    monkeypatch.setattr(running, "group_pass_tokens", lambda base, usual: 2000)
    ok("sweep", "log", "--tokens", 3, "--init", "vocab", "--pass-tokens", 64, *QUICK)
    assert json.loads(next(Path("out").glob("*/began.json")).read_text())["pass_tokens"] == 64
    ok("sweep", "log", "--tokens", 3, "--init", "vocab", *QUICK, "--overwrite")
    assert json.loads(next(Path("out").glob("*/began.json")).read_text())["pass_tokens"] == 2000


def test_begun_anew_nothing_of_the_old_one_is_taken() -> None:
    ok("sweep", "log", "--tokens", "2,4", "--init", "vocab", *QUICK)
    ok("sweep", "log", "--tokens", "3", "--init", "vocab", *QUICK, "--overwrite")
    assert [run["choice"]["tokens"] for run in results()["models"][0]["runs"]] == [3]
    assert formats.read(Path("out/winner.zip")).n_tokens == 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "nothing to train on"),
        (("log",), "--out-dir"),
        # A wrong value is named before a missing one.
        (("log", "--on", "slurm"), "--on"),
        (("--on", "ray://host"), "--on"),
        (("--tokens", "2,x"), "--tokens"),
        (("--resume", "nowhere", "--on", "slurm"), "--on"),
        (("nowhere", *QUICK), "no such file"),
        (("log", "--tokens", "2,x", *QUICK), "--tokens"),
        (("log", "--tokens", "2,2", *QUICK), "twice"),
        (("log", "--init", "magic", *QUICK), "--init"),
        (("log", "--method", "lora", *QUICK), "--method"),
        (("log", "--kind", "embedding,lora", *QUICK), "--kind"),
        (("log", "--kind", "kv", "--method", "residual", *QUICK), "no residual network"),
        (("log", "--lr", "", *QUICK), "--lr"),
        (("log", *QUICK, "--steps", 3), "--steps"),
        (("--resume", "log"), "no sweep to resume"),
        (("--resume", "log", "--lr", "1"), "the settings it began with"),
        (("log", "--out-dir", "log/00.txt"), "this is a file"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(monkeypatch, flags, said) -> None:
    monkeypatch.setattr("sordino.cli.sweep.loaded_model", lambda *_, **__: pytest.fail("a model was loaded"))
    result = run("sweep", *flags)
    assert result.exit_code in (1, 2)
    assert said in result.stderr
    assert not Path("out").exists()


def test_the_help_says_the_default_that_holds() -> None:
    shown = " ".join(ok("sweep", "--help").split())
    assert "--steps INTEGER Optimiser steps. [default: 120; 1 to 10000000]" in shown
