"""Reading and writing as a whole: what is at a path, what is lost, what is replaced, what is disclosed."""

from __future__ import annotations

import os
import stat
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from sordino import formats
from sordino.errors import BadInput, SoftPromptFileError, StorageError
from sordino.prompts.attention import PromptAttention
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.formats.makers import FULL, one_of_each, prompt
from tests.formats.refusals import both_refuse
from tests.prompt_files import matrix


def test_every_kind_is_found_by_content_and_read(tmp_path: Path) -> None:
    kinds = set()
    for name, path in one_of_each(tmp_path):
        hidden = path.rename(path.with_name("something else"))
        kinds.add(formats.detect(hidden))
        assert np.array_equal(formats.read(hidden).matrix, matrix()), name
        seen = formats.peek(hidden)
        assert (seen.format, seen.n_tokens, seen.d_model) == (formats.detect(hidden), 4, 8)
        assert seen.metadata == formats.read(hidden).metadata
        if hidden.is_file():
            assert seen.size == hidden.stat().st_size
            assert seen.mtime == hidden.stat().st_mtime
            hidden.unlink()
        else:
            # What is read; the model card is for people.
            assert seen.size == sum(file.stat().st_size for file in hidden.iterdir() if file.name != "README.md")
            hidden.rename(tmp_path / "away")
    assert kinds == set(formats.FORMATS) - {"kv"}


def test_a_file_of_one_prompt_has_no_index_but_0(tmp_path: Path) -> None:
    for name, path in one_of_each(tmp_path):
        assert formats.read(path, index=0).n_tokens == 4, name
        with pytest.raises(SoftPromptFileError, match="--index 1"):
            formats.read(path, index=1)


def test_what_is_no_file(tmp_path: Path) -> None:
    both_refuse(tmp_path / "nothing", "no such file")
    both_refuse(tmp_path / "nothing" / "in" / "nothing", "no such file")
    (tmp_path / "empty").write_bytes(b"")
    both_refuse(tmp_path / "empty", "an empty file")
    (tmp_path / "text").write_text("Once upon a time")
    both_refuse(tmp_path / "text", "not a soft prompt file", "Once")
    both_refuse(tmp_path, "no tensor.npy")
    for operation in (formats.read, formats.peek, formats.detect):
        with pytest.raises(SoftPromptFileError, match="cannot be read"):
            operation(tmp_path / "a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    both_refuse(tmp_path / "pipe", "not a file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    formats.write(prompt(), tmp_path / "v.zip")
    (tmp_path / "v.zip").chmod(0)
    both_refuse(tmp_path / "v.zip", "cannot be read")


# Writing


@pytest.mark.parametrize(
    ("to", "metadata"),
    [
        ("mkultra", Metadata(description="灯" * 100_000)),
        ("mkultra", Metadata(training={"tensor": "a text"})),
        ("safetensors", Metadata(description='"' * 200_000)),
    ],
)
def test_nothing_is_written_that_could_not_be_read_again(tmp_path: Path, to: str, metadata: Metadata) -> None:
    with pytest.raises(BadInput, match="metadata"):
        formats.write(SoftPrompt(matrix(), metadata), tmp_path / "v", to=to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", formats.WRITABLE)
def test_what_is_there_is_replaced_only_with_force(tmp_path: Path, to: str) -> None:
    path = tmp_path / "v"
    if to != "peft":
        path.write_bytes(b"somebody's file")
        with pytest.raises(BadInput, match="--force"):
            formats.write(prompt(), path, to=to)
        assert path.read_bytes() == b"somebody's file"
    formats.write(prompt(), path, to=to, force=True)
    assert formats.detect(path) == to
    assert formats.read(path).content_hash == prompt().content_hash


@pytest.mark.parametrize("to", ["torch", "zip", ""])
def test_an_unknown_format_is_refused(tmp_path: Path, to: str) -> None:
    with pytest.raises(BadInput, match="kobold, peft, mkultra, npy, safetensors"):
        formats.write(prompt(), tmp_path / "v", to=to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", formats.WRITABLE)
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    formats.write(prompt(), tmp_path / "v", to=to)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        formats.write(SoftPrompt(matrix(1)), tmp_path / "v", to=to, force=True)
    assert np.array_equal(formats.read(tmp_path / "v").matrix, matrix())
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def test_what_an_npy_loses_is_said(tmp_path: Path) -> None:
    (warning,) = formats.write(prompt(), tmp_path / "v.npy", to="npy")
    assert "author, supported, description, base, licence, tags, rating, created, training, heldout, samples" in warning
    assert formats.write(SoftPrompt(matrix(), Metadata(name="v")), tmp_path / "w.npy", to="npy") == []


@pytest.mark.parametrize("to", formats.WRITABLE)
def test_a_prompt_for_after_bos_warns_wherever_that_is_not_known(tmp_path: Path, to: str) -> None:
    warnings = formats.write(prompt(Metadata(placement="after_bos")), tmp_path / "v", to=to, force=True)
    assert any("BOS" in line for line in warnings)
    assert all("\n" not in line for line in warnings)
    if to != "npy":
        assert formats.read(tmp_path / "v").metadata.placement == "after_bos"


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        formats.write(prompt(), tmp_path / "v.zip")
    finally:
        os.umask(mask)
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "v.zip").stat().st_mode) == 0o644


# Disclosure


def test_disclosure_names_all_that_the_file_says() -> None:
    lines = formats.file_disclosure(prompt())
    text = "\n".join(lines)
    for part in ("The Keeper", "Анна", "org/model", "org/other", "CC-BY-4.0", "sea, log", "general", "2026-01-02"):
        assert part in text
    assert "training recipe: steps, learning_rate, init, nested" in lines
    assert "samples: 1, " in text
    assert "began as an excerpt" in text
    assert "nll" in text


def test_whatever_a_file_says_is_disclosed() -> None:
    every = replace(FULL, placement="after_bos", attention=PromptAttention(64, 2), foreign={"gallery": 1})
    little = formats.file_disclosure(prompt(Metadata()))
    for item in fields(Metadata):
        one = prompt(replace(Metadata(), **{item.name: getattr(every, item.name)}))
        assert formats.file_disclosure(one) != little, item.name
    assert "placement: after BOS, hold 64, strength 2" in formats.file_disclosure(prompt(every))


def test_disclosure_of_little_is_little() -> None:
    lines = formats.file_disclosure(SoftPrompt(matrix(), Metadata(name="v")))
    assert [line.partition(":")[0] for line in lines] == ["name", "placement", "the matrix"]
    without = replace(FULL, samples=(), training={"init": "random numbers"}, base=BaseRef())
    assert not any("excerpt" in line or "samples" in line for line in formats.file_disclosure(prompt(without)))
