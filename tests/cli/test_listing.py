"""list: on narrow terminals, and for one model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from sordino import formats
from sordino.cli import console, listing
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.cli.commands import KNOWN, library_with_keeper, ok, refused
from tests.prompt_files import matrix

SMOLLM2 = BaseRef(id="HuggingFaceTB/SmolLM2-135M-Instruct", family="llama", d_model=576, n_layers=30, vocab_size=49152)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library with a soft prompt 8 wide, one of smollm2, an old one and a broken one."""
    made = library_with_keeper(tmp_path, monkeypatch)
    described = "The pompous weekly of a small town: we, the editor, on very many things"
    formats.write(SoftPrompt(matrix(1, 20, 576), Metadata(base=SMOLLM2, description=described)), made / "gazette.zip")
    old = Metadata(supported=("EleutherAI/gpt-j-6B", "org/other"), description=described)
    formats.write(SoftPrompt(matrix(2, 20, 4096), old), made / "cyberpunk-noir-detect.zip")
    formats.write(SoftPrompt(matrix(3, 20, 768), Metadata(description=described)), made / "sst2.zip")
    return made


def shown(monkeypatch: pytest.MonkeyPatch, width: int) -> list[str]:
    written = io.StringIO()
    stream = console.Stream(file=written, markup=False, highlight=False, soft_wrap=True, width=width)
    for module in (console, listing):
        monkeypatch.setattr(module, "out", stream)
    ok("list")
    return written.getvalue().splitlines()


def test_it_fits_80_columns_a_line_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, 80)
    assert max(map(len, lines)) <= 80
    found = {line.split()[0]: line for line in lines if line.strip()}
    assert {"keeper", "gazette", "cyberpunk-noir-detect"} <= set(found)
    assert "SmolLM2-135M-Instruct  " in found["gazette"]
    assert "gpt-j-6B, other  " in found["cyberpunk-noir-detect"]
    assert "768 wide  " in found["sst2"]
    assert all("The pompous" in found[name] for name in ("gazette", "sst2"))


def test_a_wide_terminal_has_the_owner_and_the_width(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(shown(monkeypatch, 160))
    assert "HuggingFaceTB/SmolLM2-135M-Instruct (576 wide)" in text
    assert "org/small (8 wide)" in text


def test_only_what_fits_a_model(folder: Path) -> None:
    (folder / "bad.zip").write_bytes(b"nothing")
    text = ok("list", "--model", "smollm2")
    assert "gazette" in text
    assert "keeper" not in text
    assert "Not listed, as they do not fit smollm2 or cannot be read: 4" in text
    assert [one["name"] for one in json.loads(ok("list", "-m", "smollm2", "--json"))] == ["gazette"]
    assert "None of the 5 soft prompts of the library fits gemma3-270m" in ok("list", "-m", "gemma3-270m")
    assert KNOWN.base.id in ok("list")


@pytest.mark.parametrize(("name", "said"), [("./nope", "no such base model"), ("org/nope", "not on this machine")])
def test_a_model_that_is_not_here_is_refused(folder: Path, name: str, said: str) -> None:
    assert said in refused("list", "--model", name)
