"""kill -9 in the middle of a write into a library: at whatever step, nothing is lost or broken, and it can be done again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from sordino import formats
from sordino.errors import NotInLibrary
from sordino.library.library import Library
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.library.kill_me import OPERATIONS, TRASHED, fresh
from tests.prompt_files import drop, matrix
from tests.waiting import WAIT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")


def hashes(folder: Path) -> set[str]:
    """Of all soft prompts in a library and its trash that can be read."""
    found = set[str]()
    for each in (folder, folder / ".trash"):
        found |= {formats.read_any(entry.path).content_hash for entry in Library([each]).scan() if not entry.error}
    return found


def left_by_kills(operation: str, folder: Path) -> Iterator[Path]:
    command = [sys.executable, "-m", "tests.library.kill_me", operation, str(folder)]
    subprocess.run(command, check=True, timeout=WAIT, cwd=Path(__file__).parents[2])
    places = sorted((place for place in folder.iterdir() if place.name.isdecimal()), key=lambda place: int(place.name))
    assert len(places) > 2, "it was killed on its way"
    yield from places


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A library with a soft prompt, a mixture, an unpacked one, an empty folder, and something in its trash."""
    folder = tmp_path / "before"
    (folder / "empty").mkdir(parents=True)
    drop(folder / "keeper.zip", seed=1)
    parts = tuple(SoftPrompt(matrix(seed, 3), Metadata(name=f"part {seed}")) for seed in (4, 5))
    formats.write_mixture(Mixture(parts, np.ones(2)), folder / "both.mix.zip")
    shutil.unpack_archive(drop(tmp_path / "x.zip", seed=2), folder / "unpacked")
    drop(folder / TRASHED, seed=3)
    Library([folder]).remove("old")
    return folder


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_killed_write_leaves_a_whole_library(before: Path, operation: str) -> None:
    had = hashes(before)
    if operation == "replace":
        had -= {formats.read_any(before / "keeper.zip").content_hash}
    *killed, ended = left_by_kills(operation, before.parent)
    wanted = {entry.name for entry in Library([ended]).scan()}
    for place in killed:
        where = f"killed at step {place.name}"
        library = Library([place])
        assert [entry.path.name for entry in library.scan() if entry.error] == [], where
        assert hashes(place) >= had, where
        # And it can be done again.
        with suppress(NotInLibrary):
            OPERATIONS[operation](library)
        assert {entry.name for entry in library.scan()} == wanted, where
        assert hashes(place) == hashes(ended), where
        library.add(fresh("sweeps"), name="sweeps")
        assert list(place.glob(".sordino-*.tmp")) == [], where
