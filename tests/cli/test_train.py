"""sordino train, as a user types it: on a tiny model, with real files."""

from __future__ import annotations

import json
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from sordino import formats
from sordino.cli.console import stop_on_interrupt
from sordino.models.base_model import BaseModel
from sordino.models.sizes import ModelSizes
from sordino.training import execute, loop
from sordino.training.checkpoint import FILE, read_header
from sordino.training.failure import Failure
from tests.cli.commands import ok, refused, run
from tests.log_texts import LOG, stopping, write_log
from tests.tiny_models import tiny_base

QUICK = ("--steps", 6, "--tokens", 4, "--batch", 2, "--row-tokens", 16, "--init", "vocab")


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of texts, in a folder to work in; whatever model is asked for is tiny."""
    base = tiny_base("llama", dtype=torch.float32)
    monkeypatch.setattr("sordino.models.base_model.load", lambda name, **_: base)
    monkeypatch.setattr("sordino.models.sizes.sizes_of", lambda name: ModelSizes(name, base.ref))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SORDINO_LIBRARY", str(tmp_path / "library"))
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    return write_log(tmp_path / "log")


trained = partial(ok, "train")


def stopped_run(texts: Path, monkeypatch: pytest.MonkeyPatch, *flags: object) -> Path:
    """A run that was asked to stop after its third step, as Ctrl-C does."""
    with monkeypatch.context() as patch:
        patch.setattr(execute, "train", stopping(loop.train, after=3))
        said = trained(texts, "--out", "v.zip", *QUICK, *flags)
    assert "Go on with: sordino train --resume" in said
    assert not Path("v.zip").exists()
    return Path("v.run").resolve()


def test_texts_in_a_file_and_a_report_out(texts: Path) -> None:
    said = trained(texts, *QUICK, "--author", "Ines", "--rating", "general")
    assert "The file will disclose:" in said
    prompt = formats.read(Path("log.zip"))
    assert (prompt.n_tokens, prompt.metadata.author, prompt.metadata.name) == (4, "Ines", "log")
    assert prompt.metadata.training["steps_done"] == 6
    assert Path("log.run/report.html").is_file()


def test_a_stopped_run_is_not_lost_by_starting_again(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped_run(texts, monkeypatch)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    said = refused("train", texts, "--out", "v.zip", *QUICK)
    assert "was stopped and can go on" in said
    assert "--resume" in said
    assert "--overwrite" in said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    trained(texts, "--out", "v.zip", "--overwrite", *QUICK)
    assert formats.read(Path("v.zip")).metadata.training["steps_done"] == 6


def test_a_run_killed_while_it_was_measured_is_not_lost_by_starting_again(texts: Path, monkeypatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(execute, "write_result", killed)
        assert run("train", texts, "--out", "v.zip", *QUICK).exit_code == 9
    saved = Path("v.run", FILE).read_bytes()
    assert "can go on" in refused("train", texts, "--out", "v.zip", *QUICK)
    assert Path("v.run", FILE).read_bytes() == saved
    trained("--resume", "v.run")
    assert formats.read(Path("v.zip")).metadata.training["steps_done"] == 6
    # Once it is written, where the file goes is the user's business.
    Path("v.zip").rename("kept.zip")
    trained(texts, "--out", "v.zip", *QUICK)


def test_what_cannot_work_is_refused_before_anything_is_loaded(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sordino.models.base_model.load", lambda name, **_: pytest.fail("a model was loaded"))
    Path("folder.zip").mkdir()
    assert "this is a folder" in refused("train", texts, "--out", "folder.zip", "--overwrite")
    assert "no such file or folder" in refused("train", "nowhere")
    assert "not Unicode" in refused("train", texts, "--name", "\udcff")


def test_a_folders_name_is_not_cut_at_a_dot(texts: Path) -> None:
    texts.rename("Vol. 2 texts")
    said = trained("Vol. 2 texts", *QUICK)
    assert Path("Vol. 2 texts.zip").is_file()
    assert "sordino install 'Vol. 2 texts.zip'" in said
    trained("Vol. 2 texts", "--out", "again.zip", *QUICK)


def test_two_at_once_do_not_share_a_folder(texts: Path) -> None:
    Path("v.run").mkdir()
    with FileLock(Path("v.run") / execute.LOCK):
        assert "another process is training here" in refused("train", texts, "--out", "v.zip", *QUICK)
    trained(texts, "--out", "v.zip", *QUICK)


def test_a_resumed_run_gives_the_file_of_one_that_never_stopped(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(texts, "--out", "whole.zip", *QUICK)
    folder = stopped_run(texts, monkeypatch)
    trained("--resume", folder)
    assert formats.read(Path("v.zip")).content_hash == formats.read(Path("whole.zip")).content_hash
    whole, cut = (formats.read(Path(name)).metadata.training for name in ("whole.zip", "v.zip"))
    assert whole == cut


def test_a_run_goes_on_where_its_folder_is_now(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(texts, "--out", "whole.zip", *QUICK)
    folder = stopped_run(texts, monkeypatch)
    shutil.move(folder, "backup.run")
    # Another run to the same file, with other settings, is not touched by resuming the first.
    stopped_run(texts, monkeypatch, "--lr", 0.01)
    other = (folder / FILE).read_bytes()
    trained("--resume", "backup.run")
    assert formats.read(Path("v.zip")).content_hash == formats.read(Path("whole.zip")).content_hash
    assert (folder / FILE).read_bytes() == other
    assert read_header(Path("backup.run"))["progress"]["finished"] == "steps"


def test_a_run_goes_on_without_what_it_started_from(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(texts, "--out", "first.zip", *QUICK)
    folder = stopped_run(texts, monkeypatch, "--init", "file:first.zip")
    Path("first.zip").unlink()
    trained("--resume", folder)
    assert "the soft prompt 'first'" in formats.read(Path("v.zip")).metadata.training["init"]


@pytest.mark.parametrize("flags", [("--lr", 0.1), ("--steps", 9), ("--no-samples",), ("--seed", 3), ("--find-lr",)])
def test_a_flag_that_would_change_a_resumed_run_is_refused(texts, monkeypatch, flags) -> None:
    folder = stopped_run(texts, monkeypatch)
    said = refused("train", "--resume", folder, *flags)
    assert flags[0] in said
    assert "the settings it began with" in said


def test_a_run_keeps_its_number_type_whatever_machine_it_goes_on_on(
    texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun on a processor with bfloat16, and resumed to the bit on one without."""
    has_bfloat16 = True
    asked: list[str | None] = []
    monkeypatch.setattr("sordino.models.base_model.multiplies_bfloat16", lambda: has_bfloat16)

    def load(name: str, *, dtype: str | None = None, **_: object) -> BaseModel:
        asked.append(dtype)
        return tiny_base("llama", dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32)

    monkeypatch.setattr("sordino.models.base_model.load", load)
    trained(texts, "--out", "whole.zip", *QUICK)
    folder = stopped_run(texts, monkeypatch)
    has_bfloat16 = False
    trained("--resume", folder)
    trained(texts, "--out", "other.zip", *QUICK)
    assert asked == ["bfloat16", "bfloat16", "bfloat16", "float32"]
    whole, resumed, other = (formats.read(Path(name)) for name in ("whole.zip", "v.zip", "other.zip"))
    assert resumed.content_hash == whole.content_hash != other.content_hash
    assert [one.metadata.training["dtype"] for one in (whole, other)] == ["bfloat16", "float32"]


def test_texts_in_another_order_are_noticed(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped_run(texts, monkeypatch)
    for path in list(texts.iterdir()):
        path.rename(texts / f"{99 - int(path.stem)}.txt")
    assert "order of the texts" in refused("train", "--resume", folder)


def test_a_folder_without_a_run_is_wrong_input(tmp_path: Path) -> None:
    assert "no run to resume here" in refused("train", "--resume", tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--lr", 0.1, "--find-lr"), "both --lr and --find-lr"),
        (("--init", "data:mine"), "unknown initialisation"),
        (("--init", "random:7"), "unknown initialisation"),
        (("--minutes", "nan"), "out of range"),
        (("--minutes", "inf"), "out of range"),
        (("--sample-text", "the keeper " * 400), "the text of the samples does not fit"),
    ],
)
def test_flags_that_cannot_be_are_refused(texts: Path, flags: tuple[object, ...], said: str) -> None:
    assert said in refused("train", texts, "--out", "v.zip", "--tokens", 4, "--row-tokens", 16, *flags)


def test_a_long_prompt_is_cut_for_the_samples(texts: Path) -> None:
    """The first record's prompt is longer than the model's context; its end is what the samples continue."""
    records = [{"prompt": f"{n} " + "the sea and the lamp " * 90, "completion": LOG * 2} for n in range(12)]
    Path("tasks.jsonl").write_text("\n".join(map(json.dumps, records)))
    trained("tasks.jsonl", *QUICK, "--sample-every", 3)
    (sample,) = formats.read(Path("tasks.zip")).metadata.samples
    assert sample["prompt"].endswith("the sea and the lamp")
    assert len(sample["prompt"]) < 400


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="a signal to stand for Windows' is POSIX's")
def test_ctrl_break_stops_after_the_step_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page sends on Windows, where a process group of its own gets no Ctrl-C."""
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    numbers = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        with stop_on_interrupt() as should_stop:
            assert not should_stop()
            signal.raise_signal(number)
            assert should_stop()
        assert [signal.getsignal(one) for one in numbers] == before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no such signal")
def test_under_nohup_a_run_outlasts_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_interrupt() as should_stop:
            signal.raise_signal(signal.SIGHUP)
            assert not should_stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_name_of_another_kinds_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the keeper wrote")
    for name, kind in (("m.mix.zip", "mixture"), ("m.MIX.zip", "mixture"), ("m.kv.zip", "KV prompt")):
        assert f"name of {kind}s' files" in refused("train", "text.txt", "--out", name)
    assert "name of embedding prompts' files" in refused("train", "text.txt", "--kind", "kv", "--out", "m.zip")
    assert "NAME.kv.zip" in refused("train", "text.txt", "--kind", "kv", "--out", "m.zip")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "text.txt"]


@pytest.mark.parametrize(
    ("flags", "where", "named"),
    [
        (("--seed", -1), "--seed", ("seed",)),
        (("--lr", 1000), "--lr", ("lr",)),
        (("--method", "none"), "--method", ("method",)),
        (("--steps", "many"), "--steps", ("steps",)),
        (("--steps", 1, "--minutes", 1), "", ("steps", "minutes")),
        (("--out", "v.mix.zip"), "--out", ("out",)),
    ],
)
def test_what_ends_a_run_is_written_for_who_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[object, ...], where: str, named: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the keeper wrote")
    refused("train", "--error-file", "error.json", "text.txt", *flags)
    failure = Failure.read(tmp_path / "error.json")
    assert failure is not None
    assert (failure.where, failure.settings) == (where, named)


@pytest.mark.parametrize(("flag", "value"), [("--kind", "vk"), ("--measure", "fast"), ("--steps", "many")])
def test_a_misspelt_value_is_a_usage_error(tmp_path: Path, flag: str, value: str) -> None:
    (tmp_path / "text.txt").write_text("the keeper wrote")
    assert f"Invalid value for '{flag}'" in refused("train", tmp_path / "text.txt", flag, value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "pictures.zip"), "this is a zip archive"),
        (("train", "log", "--heldout", "pictures.zip"), "this is a zip archive"),
        (("train", "--prompt", "a=pictures.zip", "--out-dir", "out"), "this is a zip archive"),
        (("train", "log", "--init", "file:nobody"), "nobody: no file and no soft prompt"),
        (("sweep", "log", "--init", "file:nobody", "--out-dir", "out"), "nobody: no file and no soft prompt"),
        (("distil", "pictures.zip"), "this is a zip archive"),
        (("distil", "--out", "a.zip"), "there is no text to distil"),
    ],
)
def test_a_mistake_is_found_before_the_model_is_loaded(
    texts: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr("sordino.models.base_model.load", lambda name, **_: pytest.fail("the model was loaded"))
    Path("pictures.zip").write_bytes(b"PK\x03\x04 photo.jpg")
    before = sorted(texts.parent.rglob("*"))
    assert words in refused(*arguments)
    assert sorted(texts.parent.rglob("*")) == before


def test_a_text_is_not_the_file_to_write(texts: Path) -> None:
    """Who names a text x.zip is not advised to replace it."""
    Path("notes.zip").write_text(LOG * 40)
    for more in ((), ("--overwrite",), ("--out", "notes.zip")):
        assert "notes.zip: this is a file to read" in refused("train", "notes.zip", *QUICK, *more)
