"""The packaged texts: enough of them, written and not repeated, and no more alike inside than a novel is."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[1] / "src" / "sordino" / "data"
CORPORA = ("keeper", "gazette", "noir")
RUN = 8


def _pieces(corpus: str) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(DATA.glob(f"{corpus}/*/*.txt"))}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


@pytest.mark.parametrize("corpus", CORPORA)
def test_no_two_pieces_share_a_run_of_eight_words(corpus):
    holders: Counter[tuple[str, ...]] = Counter()
    for text in _pieces(corpus).values():
        words = _words(text)
        holders.update({tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)})
    assert [" ".join(run) for run, count in holders.items() if count > 1] == []


@pytest.mark.parametrize(
    ("corpus", "words", "pieces"), [("keeper", 12_000, 20), ("gazette", 5_000, 8), ("noir", 5_000, 8)]
)
def test_there_is_enough_and_it_is_split_by_piece(corpus, words, pieces):
    texts = _pieces(corpus)
    assert sum(len(text.split()) for text in texts.values()) >= words
    assert len(texts) >= pieces
    assert len(list((DATA / corpus / "heldout").glob("*.txt"))) >= 2
    assert len(list((DATA / corpus / "train").glob("*.txt"))) >= 2


def test_the_keepers_log_is_as_varied_as_alice(shared_dir):
    alice = (shared_dir / "data" / "carroll" / "train" / "alice.txt").read_text(encoding="utf-8")
    ours = "\n\n".join(_pieces("keeper").values())
    count = min(len(_words(ours)), len(_words(alice)))
    size = min(len(ours.encode()), len(alice.encode()))

    def variety(text: str) -> tuple[float, float]:
        words, raw = _words(text)[:count], text.encode()[:size]
        return len(set(words)) / len(words), len(zlib.compress(raw, 9)) / len(raw)

    for mine, hers in zip(variety(ours), variety(alice), strict=True):
        assert mine == pytest.approx(hers, rel=0.1)
