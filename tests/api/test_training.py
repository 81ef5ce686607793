"""Training from Python: events, file, report, and a run that goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import sordino
from sordino.errors import BadInput, ConfigError
from sordino.training.launch import environment_of
from tests.api.inputs import texts
from tests.tiny_models import tiny_base

SMALL = {"tokens": 4, "steps": 6, "batch": 2, "row_tokens": 16, "evaluate_every": 2, "sample_tokens": 6}


def test_a_run_gives_events_a_file_and_a_report(model, tmp_path: Path) -> None:
    events: list[object] = []
    out = tmp_path / "voice.zip"
    told = {"author": "A", "tags": "sea, letters", "samples": False}
    result = sordino.train(model, texts(tmp_path / "texts"), out=out, on_event=events.append, **SMALL, **told)
    assert [event.step for event in events if isinstance(event, sordino.Step)] == [1, 2, 3, 4, 5, 6]
    assert any(isinstance(event, sordino.Validation) for event in events)
    assert any(isinstance(event, sordino.Sample) for event in events)
    assert sordino.load(out).content_hash == result.prompt.content_hash
    known = sordino.load(out).metadata
    assert (known.name, known.author, known.tags, known.samples) == ("voice", "A", ("sea", "letters"), ())
    assert known.base.id == model.base.name
    assert (result.file, result.folder) == (out, tmp_path / "voice.run")
    assert (result.folder / "report.html").exists()
    assert "These 4 vectors" in str(result.report)


def test_a_run_that_was_interrupted_goes_on_to_the_same_bits(model, tmp_path: Path) -> None:
    folder = texts(tmp_path / "texts")
    whole = sordino.train(model, folder, out=tmp_path / "whole.zip", **SMALL)

    def interrupt(event: object) -> None:
        if isinstance(event, sordino.Step) and event.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sordino.train(model, folder, out=tmp_path / "part.zip", on_event=interrupt, **SMALL)
    with pytest.raises(BadInput, match="was stopped and can go on"):
        sordino.train(model, folder, out=tmp_path / "part.zip", **SMALL)
    assert sordino.unfinished(tmp_path / "part.zip") == tmp_path / "part.run"
    resumed = sordino.resume(model, tmp_path / "part.run")
    assert sordino.unfinished(tmp_path / "part.zip") is None
    assert resumed.file == tmp_path / "part.zip"
    assert resumed.prompt.content_hash == whole.prompt.content_hash
    with pytest.raises(BadInput, match="there is a file of this name"):
        sordino.resume(model, tmp_path / "part.run")


def test_a_run_that_was_interrupted_in_measuring_is_unfinished(model, tmp_path: Path) -> None:
    def interrupt(event: object) -> None:
        if type(event).__name__ == "Disclosed":
            raise KeyboardInterrupt

    out = tmp_path / "voice.zip"
    assert sordino.unfinished(out) is None
    with pytest.raises(KeyboardInterrupt):
        sordino.train(model, texts(tmp_path / "texts"), out=out, on_event=interrupt, **SMALL)
    assert out.exists()
    folder = sordino.unfinished(str(out))
    assert folder == tmp_path / "voice.run"
    assert (sordino.resume(model, folder).folder / "report.html").exists()


def test_a_run_goes_on_with_its_own_model_only(model, tmp_path: Path) -> None:
    def interrupt(event: object) -> None:
        if isinstance(event, sordino.Step) and event.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sordino.train(model, texts(tmp_path / "texts"), out=tmp_path / "a.zip", on_event=interrupt, **SMALL)
    with pytest.raises(sordino.SordinoError, match="model"):
        sordino.resume(sordino.Model(tiny_base("llama", dtype=torch.float32, seed=1)), tmp_path / "a.run")


def test_settings_that_are_none_are_refused_before_a_text_is_read(model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown setting; got step"):
        sordino.train(model, tmp_path, step=3)
    with pytest.raises(ConfigError, match="steps and minutes"):
        sordino.train(model, tmp_path, steps=3, minutes=1)
    with pytest.raises(BadInput, match="nothing to train on"):
        sordino.train(model, [])
    with pytest.raises(BadInput, match=r"a soft prompt is written as a \.zip"):
        sordino.train(model, tmp_path, out=tmp_path / "voice.npy")


def test_the_lines_of_the_package_run_as_they_stand(
    model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    texts(tmp_path / "texts")
    texts(tmp_path / "heldout", 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sordino.models.base_model.load", lambda name, **options: model.base)
    lines = [line[4:] for line in sordino.__doc__.splitlines() if line.startswith("    ")]
    exec("\n".join(lines).replace("steps=100", "steps=3"), {})
    shown = capsys.readouterr().out
    assert "Step(step=3, " in shown
    assert repr(sordino.load("voice.zip")) == "SoftPrompt('texts', 20 x 32)"
    assert shown.count("in front of the text") == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": "3"}, "steps: a setting is of the wrong type; expected a whole number, got '3'"),
        ({"minutes": "5"}, "minutes: a setting is of the wrong type"),
        ({"tags": ["sea"]}, "tags: a setting is of the wrong type; expected a text"),
        ({"speaker": 3}, "speaker: a setting is of the wrong type"),
        ({"rating": "bad"}, "rating: unknown value; expected general, mature, explicit, got bad"),
        ({"step": 3}, r"settings: unknown setting; got step; did you mean steps\?"),
    ],
)
def test_settings_of_another_type_are_refused_by_name(model, tmp_path: Path, settings: dict, words: str) -> None:
    with pytest.raises(sordino.SordinoError, match=words):
        sordino.train(model, tmp_path, out=tmp_path / "voice.zip", **settings)


def test_one_of_several_processes_is_refused_before_anything_is_written(
    model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment_of(1, 2, 0).items():
        monkeypatch.setenv(name, value)
    folder = texts(tmp_path / "texts")
    with pytest.raises(ConfigError, match="in Python a run has one process"):
        sordino.train(model, folder, out=tmp_path / "voice.zip", **SMALL)
    assert os.listdir(tmp_path) == ["texts"]
