"""Packing loses nothing, repeats nothing and never overfills a row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.forward.packing import (
    best_packing,
    input_passes,
    labelled_rows,
    one_by_one,
    pack,
    passes,
    with_leading_ids,
)
from sordino.texts.example_store import Example, SoftTargets

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(LENGTHS, st.integers(0, 40))
def test_every_example_is_packed_once_and_no_row_is_overfull(lengths, slack):
    width = max(lengths) + slack
    bins = pack(lengths, width)
    assert sorted(i for group in bins for i in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= width for group in bins)


@given(LENGTHS, st.integers(0, 100))
def test_the_best_packing_is_never_worse_than_one_example_a_row(lengths, prefix):
    bins = best_packing(lengths, prefix)
    assert sorted(i for group in bins for i in group) == list(range(len(lengths)))
    width = max(sum(lengths[i] for i in group) for group in bins)
    assert len(bins) * width <= len(lengths) * max(lengths) * 1.5


def test_short_examples_share_rows():
    bins = best_packing([10, 10, 10, 10, 40], 20)
    assert len(bins) == 2


def test_an_example_longer_than_the_row_is_refused():
    with pytest.raises(ValueError, match="41"):
        pack([41], 40)


@given(LENGTHS, st.integers(1, 200))
def test_passes_keep_all_rows_and_their_size(lengths, limit):
    groups = one_by_one(lengths)
    cut = passes(groups, lengths, limit)
    assert [group for part in cut for group in part] == groups
    assert all(len(part) == 1 or len(part) * max(lengths) <= limit for part in cut)


def test_labels_stay_with_their_tokens():
    examples = [Example((1, 2, 3), (False, True, True), "a"), Example((4, 5), (True, False), "b")]
    packed = labelled_rows(examples, [[1, 0]], [0])
    assert packed.rows.ids_BT.tolist() == [[4, 5, 1, 2, 3]]
    assert packed.rows.offset_BT.tolist() == [[0, 1, 0, 1, 2]]
    assert packed.labelled_BT.tolist() == [[True, False, False, True, True]]
    assert packed.example_N.tolist() == [1, 0, 0]


def test_soft_targets_follow_their_examples_into_rows():
    examples = [
        Example(
            tuple(range(length)),
            (False, *(True,) * (length - 1)),
            "p",
            SoftTargets(np.full((length - 1, 2), at, np.int64), np.full((length - 1, 2), 0.5, np.float32)),
        )
        for at, length in enumerate((3, 5, 2))
    ]
    packed = labelled_rows(examples, [[1], [2, 0]], [0, 0])
    assert packed.soft is not None
    assert packed.soft.ids_Nk[:, 0].tolist() == packed.example_N.tolist() == [1, 1, 1, 1, 2, 0, 0]
    led = with_leading_ids(examples[0], [9])
    assert led.soft is examples[0].soft
    with pytest.raises(ValueError, match="soft targets"):
        labelled_rows([examples[0], Example((1, 2), (True, True), "p")], [[0], [1]], [0, 0])


@given(
    sizes=st.lists(st.tuples(st.integers(0, 40), st.integers(2, 20)), min_size=1, max_size=20),
    limit=st.integers(20, 400),
    own=st.integers(0, 200),
)
def test_inputs_are_cut_into_passes_of_like_lengths(sizes, limit, own):
    examples = [Example((1,) * (read + out), (False,) * read + (True,) * out, "p", input=read) for read, out in sizes]
    ahead = [at % 5 for at in range(len(sizes))]
    cut = input_passes(examples, ahead, limit, own_pass=own)
    assert sorted(i for part in cut for i in part) == list(range(len(sizes)))

    def positions(part):
        read = max(ahead[i] + sizes[i][0] for i in part)
        return len(part) * (read + max(sizes[i][1] for i in part) - 1)

    def fits(part):
        prompt, write = max(ahead[i] for i in part), max(sizes[i][1] for i in part) - 1
        read = max(ahead[i] + sizes[i][0] for i in part)
        return len(part) == 1 or len(part) * max(prompt, read - prompt, write) <= limit

    assert all(part == sorted(part) and fits(part) for part in cut)
    # No dearer than one row a pass, nor than all rows in one where they fit.
    cost = sum(map(positions, cut)) + own * len(cut)
    assert cost <= sum(positions([i]) + own for i in range(len(sizes)))
    if fits(range(len(sizes))):
        assert cost <= positions(range(len(sizes))) + own
