"""Which of llama.cpp's sequences a row has, without a model: where rows have cells of their own, and a move fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from sordino.engine.prefix_cache import WORTH_KEEPING
from sordino.engine.runners.llama_cpp_runner import GgufRunner
from sordino.engine.runners.runner import Span
from sordino.errors import ModelError, OutOfMemory, SordinoError

IDS = tuple(range(2, 2 + WORTH_KEEPING + 1))


class Context:
    """Sequences of ids: a position holds the id that was run there."""

    split, cells, sequences, window, d_model, vocab_size = True, 4096, 4, 0, 3, 5000

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}
        self.fails: SordinoError | None = None

    def run_ids(self, ids: Any, positions: Any, sequences: Any, wanted: Any) -> NDArray[np.float32]:
        for word, position, sequence in zip(ids, positions, sequences, strict=True):
            assert position == len(self.held.setdefault(sequence, []))
            self.held[sequence].append(word)
        return np.zeros((sum(wanted), self.vocab_size), np.float32)

    def cut(self, sequence: int, length: int) -> None:
        self.held[sequence] = self.held.get(sequence, [])[:length]

    def saved_bytes(self, sequence: int) -> int:
        return 8 * len(self.held[sequence])

    def saved(self, sequence: int) -> NDArray[np.uint8]:
        if self.fails:
            raise self.fails
        return np.array(self.held[sequence], np.int64).view(np.uint8)

    def restore(self, sequence: int, state: NDArray[np.uint8]) -> None:
        self.held[sequence] = state.view(np.int64).tolist()


@pytest.mark.parametrize("error", [OutOfMemory("no cells"), ModelError("could not save a sequence")])
def test_a_row_that_cannot_be_moved_stays_and_no_sequence_is_lost(error: SordinoError) -> None:
    context = Context()
    model: Any = SimpleNamespace(name="m", d_model=3, vocab_size=5000, bos_ids=(1,), fingerprint="f")
    runner = GgufRunner(model, cast("Any", context), prefix_bytes=1 << 20)
    for number in range(3):
        assert runner.open(number, None, IDS) == 0
    runner.run([Span(number, IDS, True) for number in range(3)])
    context.fails = error
    runner.close(0, IDS)
    runner.run([Span(number, (7,), True) for number in (1, 2)])
    assert {number: row.sequence for number, row in runner._rows.items()} == {1: 1, 2: 2}
    assert context.held[1] == context.held[2] == [1, *IDS, 7]
    context.fails = None
    # The hole is the next row's, and all four are to be had.
    for number in (3, 4):
        assert runner.open(number, None, IDS) == 0
    assert sorted(row.sequence for row in runner._rows.values()) == [0, 1, 2, 3]
    runner.close(1, ())
    hole = ({0, 1, 2, 3} - {row.sequence for row in runner._rows.values()}).pop()
    runner.run([Span(2, (8,), True)])
    assert hole != 3
    assert sorted(row.sequence for row in runner._rows.values()) == [0, 1, 2]
    assert sorted(context.held[row.sequence][-1] for row in runner._rows.values()) == [1, 1, 8]
