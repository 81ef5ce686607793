"""A sample is drawn while texts are read: by the seed and the content alone, and without holding what is left out."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from sordino.texts.pieces import Piece
from sordino.texts.reading import read_pieces
from sordino.texts.sampling import SampledPieces, SampleSize

WORDS = ["the", "keeper", "wrote", "of", "lamp", "and", "sea", "in", "fog", "by", "night"]


def drawn(pieces: list[Piece], characters: int, seed: int = 0) -> tuple[Piece, ...]:
    sample = SampledPieces(SampleSize(characters, seed))
    for piece in pieces:
        sample.add(piece)
    return sample.pieces


def some(count: int) -> list[Piece]:
    return [Piece(f"a.jsonl:{n}", "text", f"{n} " + "x" * (n * 37 % 91)) for n in range(count)]


def test_a_sample_depends_on_neither_names_nor_order() -> None:
    pieces = some(200)
    sample = drawn(pieces, 2000)
    assert 2000 <= sum(piece.size for piece in sample) < 2000 + max(piece.size for piece in pieces)
    shuffled = [Piece(f"b{n}", piece.kind, piece.text) for n, piece in enumerate(pieces)]
    random.Random(1).shuffle(shuffled)
    assert {piece.text for piece in drawn(shuffled, 2000)} == {piece.text for piece in sample}
    assert {piece.text for piece in drawn(pieces, 2000, seed=1)} != {piece.text for piece in sample}


def test_a_smaller_sample_is_part_of_a_larger_one_in_the_order_of_reading() -> None:
    pieces = some(200)
    large = drawn(pieces, 4000)
    assert [piece for piece in pieces if piece in set(large)] == list(large)
    assert set(drawn(pieces, 1000)) < set(large)
    assert drawn(pieces, 10**6) == tuple(pieces)


def test_one_more_text_moves_few_others() -> None:
    pieces = some(400)
    before, after = set(drawn(pieces, 4000)), set(drawn([*pieces, Piece("new", "text", "y" * 300)], 4000))
    assert len(before - after) < 0.2 * len(before)


def test_the_user_is_told_what_was_left_out(tmp_path: Path) -> None:
    texts = [f"{n} " + " ".join(WORDS) for n in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    reading = read_pieces([tmp_path / "a.jsonl"], sample=SampleSize(1000, 0))
    kept, size = len(reading.pieces), sum(piece.size for piece in reading.pieces)
    (note,) = reading.notes
    assert f"more text than --most-text: {kept} of 100 pieces, {size:,} of {sum(map(len, texts)):,} characters" in note
    assert read_pieces([tmp_path / "a.jsonl"], sample=SampleSize(10**6, 0)).notes == ()


def test_progress_is_in_bytes_of_all_files(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("word " * 1000)
    seen: list[tuple[int, int]] = []
    read_pieces([tmp_path], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(5000, 10_000), (10_000, 10_000)]


@pytest.mark.parametrize("name", ["large.txt", "large.jsonl"])
def test_a_large_text_is_never_whole_in_memory(tmp_path: Path, name: str) -> None:
    """60 MB, of which a million characters are kept. Read whole, the text alone takes 60 MB, and twice that with its bytes."""
    line = " ".join(random.Random(0).choices(WORDS, k=200))
    with (tmp_path / name).open("w") as file:
        for number in range(60_000_000 // len(line)):
            text = f"{number} {line}"
            file.write((json.dumps({"text": text}) if name.endswith(".jsonl") else text + "\n") + "\n")
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from sordino.texts.reading import read_pieces; from sordino.texts.sampling import SampleSize\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); pieces = read_pieces([Path(sys.argv[1])], sample=SampleSize(1_000_000, 0)).pieces\n"
        "print(peak() - before, sum(piece.size for piece in pieces))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / name)], check=True, capture_output=True, text=True
    )
    grown, characters = map(int, answer.stdout.split())
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    assert grown / (2**10 if sys.platform == "darwin" else 1) < 30_000
    assert 1_000_000 <= characters < 2_500_000
