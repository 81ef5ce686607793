"""sordino train --prompt: several soft prompts at once on a tiny model, with real files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from sordino import formats
from sordino.training import execute, group, loop
from sordino.training.checkpoint import FILE
from tests.cli.commands import contents, ok, refused, run
from tests.log_texts import LOG, stopping, write_log
from tests.tiny_models import tiny_base

TALE = "Alice wrote to the queen, and the rabbit was late, and the tea was cold as the sea. "
QUICK = ("--steps", 6, "--tokens", 4, "--batch", 2, "--row-tokens", 16, "--init", "vocab", "--evaluate-every", 2)
BOTH = ("--prompt", "log=log", "--prompt", "tale=tale", "--out-dir", "voices")


@pytest.fixture(autouse=True)
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders of texts, in a folder to work in; whatever model is asked for is tiny."""
    base = tiny_base("llama", dtype=torch.float32)
    monkeypatch.setattr("sordino.models.base_model.load", lambda name, **_: base)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    for folder, text in (("log", LOG), ("tale", TALE)):
        write_log(tmp_path / folder, text)


def stopped(monkeypatch: pytest.MonkeyPatch, *flags: object) -> str:
    """Both, asked to stop after the third step."""
    with monkeypatch.context() as patch:
        patch.setattr(group, "train_group", stopping(loop.train_group, after=3))
        return ok("train", *BOTH, *QUICK, *flags)


def test_a_file_and_a_report_a_soft_prompt() -> None:
    said = ok("train", *BOTH, *QUICK, "--author", "Ines")
    for name in ("log", "tale"):
        prompt = formats.read(Path(f"voices/{name}.zip"))
        assert (prompt.n_tokens, prompt.metadata.name, prompt.metadata.author) == (4, name, "Ines")
        assert prompt.metadata.training["steps_done"] == 6
        assert prompt.metadata.heldout["nll"]["no_prompt"] > 0
        assert Path(f"voices/{name}.run/report.html").is_file()
    assert "2 soft prompts together, 6 steps each" in said
    assert "one base model" in said


def test_they_are_what_each_is_alone() -> None:
    """By the flag's name in 0.1.0."""
    ok("train", *("--voice" if flag == "--prompt" else flag for flag in BOTH), *QUICK)
    for name in ("log", "tale"):
        ok("train", name, "--out", f"{name}.zip", *QUICK)
        alone, together = (formats.read(Path(path)) for path in (f"{name}.zip", f"voices/{name}.zip"))
        torch.testing.assert_close(
            torch.from_numpy(together.matrix.copy()), torch.from_numpy(alone.matrix.copy()), rtol=0, atol=1e-3
        )
        assert together.metadata.training["data_hash"] == alone.metadata.training["data_hash"]


def test_stopped_runs_go_on_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    ok("train", *BOTH, *QUICK)
    Path("voices").rename("whole")
    said = stopped(monkeypatch)
    assert "Go on with: sordino train --resume voices/together.run" in said
    assert not list(Path("voices").glob("*.zip"))
    before = contents(Path("voices"))
    assert "were stopped and can go on" in refused("train", *BOTH, *QUICK)
    assert contents(Path("voices")) == before
    # They go on where their folder is now.
    shutil.move("voices", "moved")
    Path("voices").mkdir()
    ok("train", "--resume", "moved/together.run")
    for name in ("log", "tale"):
        whole, cut = formats.read(Path(f"whole/{name}.zip")), formats.read(Path(f"voices/{name}.zip"))
        assert whole.content_hash == cut.content_hash
        assert whole.metadata.training == cut.metadata.training


def test_runs_killed_while_they_were_measured_are_not_lost_by_starting_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(group, "write_result", killed)
        assert run("train", *BOTH, *QUICK).exit_code == 9
    assert "--resume voices/together.run" in refused("train", *BOTH, *QUICK)
    ok("train", "--resume", "voices/together.run")
    assert {path.name for path in Path("voices").glob("*.zip")} == {"log.zip", "tale.zip"}


def test_what_was_written_before_a_crash_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real = group.write_result

    def second_fails(job, *rest, **more):
        if job.out.stem == "tale":
            raise KeyboardInterrupt
        return real(job, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(group, "write_result", second_fails)
        assert run("train", *BOTH, *QUICK).exit_code == 130
    first, matrix = Path("voices/log.zip").read_bytes(), formats.read(Path("voices/log.zip")).matrix
    asked = []
    monkeypatch.setattr(group, "write_result", lambda job, *r, **m: asked.append(job.out.stem) or real(job, *r, **m))
    ok("train", "--resume", "voices/together.run")
    assert asked == ["tale"]
    assert Path("voices/log.zip").read_bytes() == first
    assert Path("voices/tale.zip").is_file()
    # A report that was not written any more is, and the matrix is the same.
    Path("voices/log.run/report.html").unlink()
    ok("train", "--resume", "voices/together.run")
    assert asked == ["tale", "log"]
    assert Path("voices/log.run/report.html").is_file()
    assert np.array_equal(formats.read(Path("voices/log.zip")).matrix, matrix)


def test_a_strangers_file_of_that_name_is_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(monkeypatch)
    ok("train", "log", "--out", "other.zip", *QUICK, "--seed", 9)
    shutil.copy("other.zip", "voices/log.zip")
    assert "a file of this name appeared" in refused("train", "--resume", "voices/together.run")
    assert Path("voices/log.zip").read_bytes() == Path("other.zip").read_bytes()


def test_minutes_are_those_of_all() -> None:
    said = ok("train", *BOTH, *QUICK[2:], "--minutes", 0.1)
    assert "2 soft prompts together" in said
    steps = {formats.read(Path(f"voices/{name}.zip")).metadata.training["steps"] for name in ("log", "tale")}
    assert len(steps) == 1


def test_a_dry_run_says_what_all_would_cost_and_writes_nothing() -> None:
    texts, cost = (json.loads(line) for line in ok("train", *BOTH, *QUICK, "--dry-run", "--json").splitlines())
    assert list(texts["texts"]) == ["log", "tale"]
    assert texts["texts"]["tale"]["train"] > 0
    assert cost["cost"]["steps"] == 6
    assert "2 soft prompts together" in ok("train", *BOTH, *QUICK, "--dry-run")
    assert not Path("voices").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--prompt", "log=log"), "--out-dir FOLDER"),
        (("--out-dir", "voices"), "give --prompt"),
        (("log", *BOTH), "both DATA and --prompt"),
        ((*BOTH, "--out", "v.zip"), "--out"),
        ((*BOTH, "--name", "Poe"), "--name"),
        ((*BOTH, "--heldout", "log"), "--heldout"),
        ((*BOTH, "--prompt", "LOG=tale"), "two soft prompts have the same name"),
        ((*BOTH, "--prompt", "poe=nowhere"), "no such file or folder"),
        ((*BOTH, "--prompt", "poe"), "NAME=PATH"),
        ((*BOTH, "--prompt", "=log"), "cannot have this name"),
        ((*BOTH, "--prompt", "a/b=log"), "cannot have this name"),
        ((*BOTH, "--prompt", "together=log"), "cannot have this name"),
        (("--prompt", "log=log", "--out-dir", "no/where"), "does not exist"),
        (("--prompt", "log=log", "--out-dir", "log/00.txt"), "this is a file"),
        ((*BOTH, "--lr", 1, "--find-lr"), "both --lr and --find-lr"),
        ((*BOTH, "--steps", 5, "--minutes", 1), "both --steps and --minutes"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(monkeypatch, flags, said) -> None:
    monkeypatch.setattr("sordino.models.base_model.load", lambda name, **_: pytest.fail("a model was loaded"))
    assert said in refused("train", *flags)
    assert not Path("voices").exists()


def test_a_soft_prompt_with_too_little_text_is_named() -> None:
    Path("short").mkdir()
    Path("short/a.txt").write_text("Too short.")
    assert "--prompt short: too little text" in refused("train", *BOTH, "--prompt", "short=short", *QUICK)
    assert not Path("voices").exists()


def test_a_resumed_group_goes_on_as_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(monkeypatch)
    assert "the settings it began with" in refused("train", "--resume", "voices/together.run", "--lr", 1)
    assert "the settings it began with" in refused("train", "--resume", "voices/together.run", "--prompt", "log=log")
    assert "leave DATA out" in refused("train", "log", "--resume", "voices/together.run")
    data = bytearray(Path(f"voices/together.run/{FILE}").read_bytes())
    data[-5] ^= 1
    Path(f"voices/together.run/{FILE}").write_bytes(data)
    assert "damaged" in run("train", "--resume", "voices/together.run").output


def test_nobody_else_trains_in_a_runs_folder() -> None:
    Path("voices/tale.run").mkdir(parents=True)
    with FileLock(Path("voices/tale.run") / execute.LOCK):
        assert "another process is training here" in refused("train", *BOTH, *QUICK)
    ok("train", *BOTH, *QUICK)
