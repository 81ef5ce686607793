"""convert, and what --model adds to it and to show."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sordino import formats
from sordino.errors import DoesNotFit
from sordino.prompts.soft_prompt import BaseRef, SoftPrompt
from tests.cli.commands import KNOWN, contents, ok, refused
from tests.prompt_files import matrix


@pytest.mark.parametrize("out", ["v.npy", "v.safetensors", "v.json", "v.zip", "folder"])
def test_convert_takes_the_format_from_the_name_and_keeps_the_matrix(folder: Path, out: str) -> None:
    wanted = {"v.npy": "npy", "v.safetensors": "safetensors", "v.json": "mkultra", "v.zip": "kobold", "folder": "peft"}
    assert "Wrote" in ok("convert", "keeper", out)
    assert formats.detect(Path(out)) == wanted[out]
    assert formats.read(Path(out)).content_hash == SoftPrompt(matrix()).content_hash
    ok("convert", out, "back.zip")
    assert formats.read(Path("back.zip")).content_hash == SoftPrompt(matrix()).content_hash


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (("keeper", "v.txt"), "--to"),
        (("keeper", "v.pt"), "pickles"),
        (("keeper", "v.bin", "--to", "npy"), "pickles"),
        (("keeper", "v.zip", "--to", "npy"), "disagree"),
        (("keeper", "v.Mix.zip"), "mixtures' files"),
        (("keeper", "v.json", "--to", "peft"), "disagree"),
        (("keeper", "no/such/v.zip"), "does not exist"),
        (("keper", "v.zip"), "did you mean keeper"),
        (("keeper", "there.zip"), "--force"),
    ],
)
def test_convert_refuses_and_writes_nothing(folder: Path, args: tuple[str, ...], wanted: str) -> None:
    Path("there.zip").write_bytes(b"somebody's file")
    before = contents(folder.parent)
    assert wanted in refused("convert", *args)
    assert contents(folder.parent) == before


def test_convert_replaces_with_force_and_takes_odd_names_with_to(folder: Path) -> None:
    Path("there.zip").write_bytes(b"somebody's file")
    ok("convert", "keeper", "there.zip", "--force")
    assert formats.detect(Path("there.zip")) == "kobold"
    ok("convert", "keeper", "voice.v2", "--to", "peft")
    assert formats.detect(Path("voice.v2")) == "peft"
    assert formats.read(Path("voice.v2")).content_hash == SoftPrompt(matrix()).content_hash


def test_convert_to_a_folder_never_deletes_documents(folder: Path) -> None:
    Path("documents").mkdir()
    Path("documents/thesis.txt").write_text("years of work")
    assert "there is a folder of this name" in refused("convert", "keeper", "documents")
    refused("convert", "keeper", "documents", "--force")
    assert Path("documents/thesis.txt").read_text() == "years of work"


# --model, with a base model of the test's own: loading a real one takes seconds


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    ref = BaseRef(
        id="org/small", family="llama", d_model=8, n_layers=2, vocab_size=100, embedding_rms=0.1, fingerprint="f" * 64
    )

    fit = SimpleNamespace(kind="exact", reason="the fingerprint agrees", forcible=False)

    def check_fit(prompt: SoftPrompt, *, force: bool) -> SimpleNamespace:
        if prompt.d_model != ref.d_model:
            raise DoesNotFit("another width", where="--model", expected=8, got=prompt.d_model)
        return fit

    model = SimpleNamespace(
        name="small",
        network=SimpleNamespace(config=SimpleNamespace(model_type="llama")),
        id=ref.id,
        fingerprint=ref.fingerprint,
        ref=ref,
        check_fit=check_fit,
        fit=lambda prompt: fit,
    )
    stand_in = SimpleNamespace(load=lambda name, **settings: model)
    monkeypatch.setitem(sys.modules, "sordino.models.base_model", stand_in)
    monkeypatch.setattr("sordino.models.base_model", stand_in, raising=False)
    return model


@pytest.mark.usefixtures("base")
def test_show_says_how_well_it_fits(folder: Path) -> None:
    assert "small: exact (the fingerprint agrees)" in ok("show", "keeper", "--model", "small")
    assert json.loads(ok("show", "keeper", "--model", "small", "--json"))["fit"]["kind"] == "exact"


def test_convert_fills_in_the_base_model_where_the_file_lacks_it(folder: Path, base: SimpleNamespace) -> None:
    np.save("bare.npy", matrix(1))
    ok("convert", "bare.npy", "filled.zip", "--model", "small")
    filled = formats.read(Path("filled.zip")).metadata
    # Not the fingerprint: nobody knows that it was made on these very weights.
    assert filled.base == replace(base.ref, fingerprint="")
    assert filled.supported == ("org/small",)


@pytest.mark.usefixtures("base")
def test_convert_with_the_wrong_model_writes_nothing(folder: Path) -> None:
    np.save("wide.npy", np.ones((4, 16), np.float32))
    assert "another width" in refused("convert", "wide.npy", "out.zip", "--model", "small")
    other = SoftPrompt(matrix(), KNOWN).with_metadata(base=BaseRef(id="org/other", fingerprint="0" * 64))
    formats.write(other, Path("other.zip"))
    assert "another base model" in refused("convert", "other.zip", "out.zip", "--model", "small")
    assert not Path("out.zip").exists()


# Real files


def test_real_files_convert(folder: Path, shared_dir: Path) -> None:
    samples = shared_dir / "samples"
    for source in sorted([*samples.glob("mkultra/*.json"), *samples.glob("google/*.npy")]):
        out = Path(f"{source.stem}.zip")
        ok("convert", source, out)
        assert formats.read(out).content_hash == formats.read(source).content_hash
