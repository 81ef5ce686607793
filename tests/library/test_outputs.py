"""Files that a command will write, checked before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from sordino import formats
from sordino.errors import BadInput, StorageError
from sordino.library.outputs import Outputs, check_picture
from sordino.prompts.soft_prompt import SoftPrompt
from tests.prompt_files import matrix


def test_a_read_only_folder_is_found_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # chmod does not stop root, as whom tests may run.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for outputs in (Outputs(tmp_path / "v.zip"), Outputs(picture=tmp_path / "v.png")):
        with pytest.raises(StorageError, match="cannot be written to; choose another"):
            outputs.check()


def test_kinds_of_picture(tmp_path: Path) -> None:
    check_picture(tmp_path / "a.SVG", overwrite=False)
    for name in ("a.gif", "a"):
        with pytest.raises(BadInput, match=r"\.png or \.svg"):
            check_picture(tmp_path / name, overwrite=False)


def test_a_picture_lies_beside_the_soft_prompt_unless_it_was_named() -> None:
    assert Outputs(Path("a/v.zip")).with_picture().picture == Path("a/v.png")
    assert Outputs(Path("a/v.zip"), Path("b.svg")).with_picture().picture == Path("b.svg")
    assert Outputs().with_picture() == Outputs()


@pytest.mark.parametrize("name", ["v.npy", "v.mix.zip", "v"])
def test_a_soft_prompt_is_written_as_zip(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match=r"\.zip"):
        Outputs(tmp_path / name).check()


def test_what_is_there_is_replaced_only_with_leave(tmp_path: Path) -> None:
    prompt, path = SoftPrompt(matrix()), tmp_path / "v.zip"
    outputs = Outputs(path)
    outputs.check()
    outputs.write(prompt)
    for refused in (outputs.check, lambda: outputs.write(prompt)):
        with pytest.raises(BadInput, match="--overwrite"):
            refused()
    leave = Outputs(path, overwrite=True)
    leave.check()
    leave.write(prompt)
    assert formats.read(path).content_hash == prompt.content_hash
