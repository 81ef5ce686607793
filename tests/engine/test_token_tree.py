"""The tree finds what looking at every sequence finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sordino.engine.token_tree import TokenTree

Ids = tuple[int, ...]
# Few tokens: beginnings are shared often.
sequences = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)


def shared(one: Ids, other: Ids) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@given(st.lists(st.tuples(st.booleans(), sequences), max_size=40), sequences)
def test_it_finds_what_a_scan_finds(steps: list[tuple[bool, Ids]], asked: Ids) -> None:
    tree: TokenTree[Ids] = TokenTree()
    there: set[Ids] = set()
    for puts, ids in steps:
        if puts:
            tree.put(ids, ids)
            there.add(ids)
        elif ids in there:
            tree.remove(ids)
            there.remove(ids)
        assert bool(tree) == bool(there)
    assert sorted(tree.beginnings(asked)) == sorted(ids for ids in there if asked[: len(ids)] == ids)
    found = list(tree.alike(asked))
    assert all(value in there and shared(value, asked) == count for value, count in found)
    assert [count for _, count in found] == sorted((count for _, count in found), reverse=True)
    assert max((count for _, count in found), default=0) == max((shared(ids, asked) for ids in there), default=0)
    if len(there) <= 8:
        assert sorted(value for value, _ in found) == sorted(ids for ids in there if shared(ids, asked))
