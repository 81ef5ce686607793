"""`import sordino`: the names it offers, that they load nothing before they are used, and what they do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sordino
from sordino.engine.generate import TextRequest, complete
from sordino.engine.sampling import Sampling
from sordino.errors import BadInput, ConfigError, DoesNotFit, NotInLibrary
from sordino.models.base_model import BaseModel
from tests.tiny_models import tiny_base

NAMES = [
    "AttachedPrompt",
    "EvaluateConfig",
    "Metadata",
    "Mixture",
    "Model",
    "Report",
    "Sample",
    "Sampling",
    "SoftPrompt",
    "SordinoError",
    "Step",
    "TrainConfig",
    "TrainResult",
    "Validation",
    "attach",
    "evaluate",
    "load",
    "load_model",
    "peek",
    "resume",
    "train",
]
LOG = "The keeper wrote of the lamp and the sea, and of the ships that went by in the fog. "


@pytest.fixture(scope="module")
def model() -> sordino.Model:
    return sordino.Model(tiny_base("llama", dtype=torch.float32))


def prompt(base: BaseModel, tokens: int = 4, *, seed: int = 0, width: int | None = None) -> sordino.SoftPrompt:
    matrix = np.random.default_rng(seed).standard_normal((tokens, width or base.d_model)).astype(np.float32) * 0.5
    return sordino.SoftPrompt(matrix, sordino.Metadata(name=f"p{seed}", placement=base.placement))


# The names -------------------------------------------------------------------------------------------------------------


def test_the_names_are_these_and_each_is_there() -> None:
    assert sordino.__all__ == NAMES
    assert all(getattr(sordino, name) is not None for name in NAMES)
    assert set(NAMES) <= set(dir(sordino))
    with pytest.raises(AttributeError, match="no attribute 'generate'"):
        sordino.generate  # noqa: B018


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import sordino; dir(sordino); sordino.__all__", ("torch", "transformers", "numpy")),
        ("import sordino; sordino.SordinoError", ("torch", "transformers", "numpy")),
        (
            "import sordino; sordino.TrainConfig(); sordino.SoftPrompt; sordino.Model; sordino.load_model; sordino.evaluate",
            ("torch", "transformers"),
        ),
        (
            "import sordino; print(sordino.load(sys.argv[1]).n_tokens, sordino.peek(sys.argv[1]))",
            ("torch", "transformers"),
        ),
    ],
)
def test_nothing_is_loaded_before_it_is_needed(code: str, absent: tuple[str, ...], model, tmp_path: Path) -> None:
    prompt(model.base).save(tmp_path / "voice.zip")
    found = f"import sys; {code}; sys.exit(' '.join({set(absent)!r} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", found, tmp_path / "voice.zip"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# Files -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["kobold", "peft", "npy", "safetensors", "mkultra"])
def test_what_is_saved_is_loaded(to: str, model, tmp_path: Path) -> None:
    made = prompt(model.base)
    made.save(str(tmp_path / "voice"), to=to)
    assert sordino.load(str(tmp_path / "voice")).content_hash == made.content_hash
    with pytest.raises(BadInput, match="there is a file of this name"):
        made.save(tmp_path / "voice", to=to)
    made.save(tmp_path / "voice", to=to, overwrite=True)


def test_a_mixture_is_saved_and_loaded(model, tmp_path: Path) -> None:
    mixture = sordino.Mixture((prompt(model.base), prompt(model.base, seed=1)), [0.25, 0.75])
    mixture.save(tmp_path / "both.mix.zip")
    loaded = sordino.load(tmp_path / "both.mix.zip")
    assert isinstance(loaded, sordino.Mixture)
    assert loaded.content_hash == mixture.content_hash
    assert "mixture" in sordino.peek(tmp_path / "both.mix.zip").format


def test_names_of_the_library_are_loaded_too(model, tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    prompt(model.base).save(tmp_path / "library" / "voice.zip")
    assert sordino.load("voice").n_tokens == 4
    with pytest.raises(NotInLibrary):
        sordino.load("voices")


def test_what_a_file_cannot_say_is_logged(model, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompt(model.base).save(tmp_path / "voice.npy", to="npy")
    assert caplog.messages == []
    prompt(model.base).with_metadata(author="A", placement="after_bos").save(tmp_path / "other.npy", to="npy")
    assert "author" in caplog.messages[0]
    assert "after BOS" in caplog.messages[1]


# Generation ------------------------------------------------------------------------------------------------------------


def test_a_text_gives_a_text_and_lists_give_a_list(model) -> None:
    own, both = prompt(model.base), ["The keeper", "ships and the sea"]
    mixture = sordino.Mixture((own, prompt(model.base, seed=1)), [0.5, 0.5])
    sampling = Sampling(max_tokens=9)
    expected = complete(model.base, [TextRequest(text, own, 7) for text in both], sampling)
    assert model.generate(both, own, seed=7, max_tokens=9) == expected
    assert model.generate(both[0], own, seed=7, max_tokens=9) == expected[0]
    assert model.generate(both, [own, own], seed=[7, 7], max_tokens=9) == expected
    rows = [TextRequest(both[0], each, 7) for each in (None, own, mixture)]
    assert model.generate(both[0], [None, own, mixture], seed=7, max_tokens=9) == complete(model.base, rows, sampling)
    assert model.generate([], own) == []
    pieces = list(model.stream(both, own, seed=7, max_tokens=9))
    assert ["".join(piece.text for piece in pieces if piece.request == row) for row in (0, 1)] == expected
    assert sum(piece.finish is not None for piece in pieces) == 2


def test_stop_is_a_text_or_several(model) -> None:
    whole = model.generate("The keeper", max_tokens=30, temperature=0)
    end = whole[4:6]
    assert model.generate("The keeper", max_tokens=30, temperature=0, stop=end) == whole[: whole.index(end)]
    assert model.generate("The keeper", max_tokens=30, temperature=0, stop=["\0", end]) == whole[: whole.index(end)]


def test_what_cannot_be_is_refused(model) -> None:
    with pytest.raises(BadInput, match="2 texts, 3 prompts, 1 seeds"):
        model.generate(["a", "b"], [None, None, None])
    with pytest.raises(ConfigError, match="unknown setting; got max_token"):
        model.generate("a", max_token=3)
    with pytest.raises(DoesNotFit):
        model.generate("a", prompt(model.base, width=16))
    other = prompt(model.base).with_metadata(base=sordino.Model(tiny_base("gpt2", dtype=torch.float32)).base.ref)
    assert model.fit(other).kind == "no"
    with pytest.raises(DoesNotFit, match="family gpt2 instead of llama"):
        model.generate("a", other)
    assert model.generate("a", other, force=True, max_tokens=3) == model.generate("a", prompt(model.base), max_tokens=3)


def test_a_model_of_transformers_writes_the_same(model) -> None:
    taken = sordino.Model.from_transformers(model.base.network, model.base.tokenizer, name="mine")
    assert taken.base.name == "mine"
    own = prompt(model.base)
    assert taken.generate("The keeper", own, max_tokens=8) == model.generate("The keeper", own, max_tokens=8)


# Training --------------------------------------------------------------------------------------------------------------


def texts(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.txt").write_text(f"Day {number}. " + LOG * (number + 3))
    return folder


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
    resumed = sordino.resume(model, tmp_path / "part.run")
    assert resumed.file == tmp_path / "part.zip"
    assert resumed.prompt.content_hash == whole.prompt.content_hash
    with pytest.raises(BadInput, match="there is a file of this name"):
        sordino.resume(model, tmp_path / "part.run")


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
    with pytest.raises(ConfigError, match="--steps and --minutes"):
        sordino.train(model, tmp_path, steps=3, minutes=1)
    with pytest.raises(BadInput, match="nothing to train on"):
        sordino.train(model, [])
    with pytest.raises(
        BadInput, match=r"voice.npy: a soft prompt is written as a .zip|a soft prompt is written as a .zip"
    ):
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


# Evaluation ------------------------------------------------------------------------------------------------------------


def test_evaluation_measures_and_prints_a_table(model, tmp_path: Path) -> None:
    for name in ("heldout", "training"):
        texts(tmp_path / name, 3)
    report = sordino.evaluate(
        model,
        {"first": prompt(model.base), "second": prompt(model.base, seed=1)},
        heldout=str(tmp_path / "heldout"),
        training=[tmp_path / "training" / "0.txt", str(tmp_path / "training" / "1.txt")],
        limit=300,
        resamples=100,
        excerpt_tokens=(20,),
        row_tokens=32,
    )
    assert {line.kind for line in report.heldout.lines} == {"soft prompt", "no prompt", "instruction", "excerpt"}
    shown = str(report)
    assert "soft prompt first" in shown
    assert "excerpt 20 tokens of the training text" in shown
    assert "first: These 4 vectors" in shown
    alone = sordino.evaluate(model, prompt(model.base), heldout=tmp_path / "heldout", limit=100, resamples=100)
    assert alone.n_tokens == {"p0": 4}
    assert "real excerpts are left out" in str(alone)
