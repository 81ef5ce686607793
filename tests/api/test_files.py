"""Soft prompts and mixtures are saved and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

import sordino
from sordino.api import naming_arguments
from sordino.errors import BadInput, DoesNotFit, NotInLibrary
from sordino.prompts.soft_prompt import BaseRef
from tests.api.inputs import prompt


@pytest.mark.parametrize("to", ["kobold", "peft", "npy", "safetensors", "mkultra"])
def test_what_is_saved_is_loaded(to: str, model, tmp_path: Path) -> None:
    made = prompt(model.base)
    made.save(str(tmp_path / "voice"), to=to)
    assert sordino.load(str(tmp_path / "voice")).content_hash == made.content_hash
    with pytest.raises(BadInput, match=f"there is a {'folder' if to == 'peft' else 'file'} of this name"):
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


def test_a_name_that_says_another_format_is_refused(model, tmp_path: Path) -> None:
    """A prompt saved as voice.npy was a zip, which numpy read as an archive."""
    made = prompt(model.base)
    for name, to, words in (
        ("voice.npy", "kobold", "to and the name disagree; expected a name in .zip, got .npy"),
        ("voice.kv.zip", "kobold", "expected a name in .zip, got .kv.zip"),
        ("voice.zip", "peft", "expected a name in no ending .a folder., got .zip"),
        ("voice.pt", "kobold", "which Sordino reads but does not write"),
        ("voice.zip", "zip", "not a format that can be written"),
    ):
        with pytest.raises(BadInput, match=words):
            made.save(tmp_path / name, to=to)
    assert not list(tmp_path.iterdir())


def test_errors_name_arguments_and_not_flags(model, tmp_path: Path) -> None:
    made = prompt(model.base)
    made.save(tmp_path / "voice.zip")
    with pytest.raises(BadInput, match="replace it with overwrite=True"):
        made.save(tmp_path / "voice.zip")
    with pytest.raises(BadInput, match=r"placement start.* with overwrite=True"):
        made.with_metadata(placement="after_bos").save(tmp_path / "adapter", to="peft")
    other = made.with_metadata(base=BaseRef("other", "gptj", made.d_model, 9, 7))
    with pytest.raises(DoesNotFit) as caught:
        model.generate("Once", other)
    assert "give force=True" in str(caught.value)
    with pytest.raises(BadInput, match="sordino train --resume"):
        raise_as_python("sordino train --resume made.run; or begin again with --overwrite")


@naming_arguments
def raise_as_python(do: str) -> None:
    raise BadInput("a run can go on", do=do)
