"""What each file of a large library costs, counted and not timed; `benchmarks.many` has the seconds."""

from __future__ import annotations

import gc
import shutil
import tracemalloc
from pathlib import Path
from typing import BinaryIO

import pytest

from sordino import formats
from sordino.formats.sources import FileSource
from sordino.library.library import Library
from sordino.library.names import near_misses
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from sordino.server.prompts import ServedPrompts
from tests.prompt_files import matrix

FILES = 200
# As `sordino train` writes it: a recipe, held-out results, a sample.
MADE = Metadata(
    base=BaseRef("org/model", "llama", 576, 2, 100, 0.1, "f" * 32),
    training={f"setting {number}": number for number in range(30)},
    heldout={name: {"nll": 3.5, "low": 3.4, "high": 3.6} for name in ("prompt", "none", "instruction", "text")},
    samples=({"prompt": "It rained", "with": "x" * 300, "without": "y" * 300},),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    formats.write(SoftPrompt(matrix(tokens=20, width=576), MADE), tmp_path / "p000.zip")
    for number in range(1, FILES):
        shutil.copy(tmp_path / "p000.zip", tmp_path / f"p{number:03}.zip")
    return tmp_path


def test_a_header_takes_few_reads_and_a_few_kilobytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    opened = FileSource.__init__

    class Counted:
        """A file, whose reads of the system are counted."""

        def __init__(self, file: BinaryIO) -> None:
            self.seek, self._read = file.seek, file.read

        def read(self, count: int) -> bytes:
            reads.append(count)
            return self._read(count)

    monkeypatch.setattr(FileSource, "__init__", lambda self, file, *more: opened(self, Counted(file), *more))
    lib = Library([folder])
    # Modules that are loaded at first use, and what they keep.
    formats.peek(folder / "p000.zip")
    reads.clear()
    gc.collect()
    tracemalloc.start()
    try:
        entries = lib.scan()
        gc.collect()
        each = tracemalloc.get_traced_memory()[0] / FILES
        # Its beginning, and its end with the JSON.
        assert len(reads) <= 3 * FILES
        assert sum(reads) / FILES < 16_384, "headers only"
        # The texts of the file are 0.7 KB of it. Keys that all files have are there once.
        assert each < 7000
    finally:
        tracemalloc.stop()
    assert len(entries) == FILES


def test_memory_does_not_grow_with_scans(folder: Path) -> None:
    lib = Library([folder])
    lib.scan()
    # As many calls deep as a scan that finds nothing new.
    tracemalloc.start(12)
    try:
        lib.scan()
        after = _kept()
        for _ in range(20):
            lib.scan()
        assert _kept() - after < 100 * FILES
    finally:
        tracemalloc.stop()


def _kept() -> int:
    """Bytes that calls from this file hold; other threads of the test process take and keep memory as well."""
    gc.collect()
    own = tracemalloc.Filter(True, __file__, all_frames=True)
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([own]).traces)


def test_what_did_not_change_is_neither_made_nor_judged_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, judged = [0.0], []
    prompts = ServedPrompts(None, Library([folder]), clock=lambda: now[0])
    served = prompts.served
    monkeypatch.setattr(prompts, "served", lambda entry: judged.append(entry.name) or served(entry))
    first = prompts.all()
    assert len(judged) == FILES
    now[0] += 1
    assert prompts.all() is first
    formats.write(SoftPrompt(matrix(1)), folder / "new.zip")
    now[0] += 1
    assert len(prompts.all()) == FILES + 1
    assert judged[FILES:] == ["new"]


def test_a_slow_scan_is_not_repeated_for_every_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, scans = [0.0], []
    lib = Library([folder])
    scan = lib.scan

    def slow() -> object:
        scans.append(now[0])
        now[0] += 0.3
        return scan()

    monkeypatch.setattr(lib, "scan", slow)
    prompts = ServedPrompts(None, lib, clock=lambda: now[0])
    for _ in range(1000):
        assert prompts.named("p007").entry.name == "p007"
        now[0] += 0.01
    # Ten seconds of requests: a scan, and one each six seconds after it.
    assert len(scans) == 2
    # A name that is not known is looked for at once.
    formats.write(SoftPrompt(matrix(1)), folder / "new.zip")
    assert prompts.named("new").file == "new.zip"
    assert len(scans) == 3


def test_near_misses_of_very_many_names_are_found_among_the_likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    from sordino.library import names

    compared: list[int] = []
    match = names.get_close_matches
    monkeypatch.setattr(
        names, "get_close_matches", lambda *given, **more: compared.append(len(given[1])) or match(*given, **more)
    )
    known = [f"voice-{number:05}" for number in range(10_000)] + ["The keeper's daughter"]
    assert near_misses("the keepers daughter", known) == ["The keeper's daughter"]
    assert compared[0] <= 500
