"""Examples in compact arrays are the examples that were put in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sordino.texts.example_store import Example, ExampleStore, tokens_of
from sordino.training.schedule import hash_of

EXAMPLES = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 300_000), st.booleans()), min_size=1, max_size=30),
        st.sampled_from(["a", "b", "c"]),
    ),
    max_size=12,
)


@given(EXAMPLES)
def test_what_is_put_in_comes_out(made: list[tuple[list[tuple[int, bool]], str]]) -> None:
    store, plain = ExampleStore(), []
    for tokens, piece in made:
        ids, labelled = tuple(token for token, _ in tokens), tuple(known for _, known in tokens)
        store.add(ids, labelled, piece)
        plain.append(Example(ids, labelled, piece))
    assert store == tuple(plain)
    assert [store[at] for at in range(len(store))] == plain
    assert [store[-1 - at] for at in range(len(store))] == plain[::-1]
    assert store[1:7:2] == tuple(plain[1:7:2])
    assert hash_of(store) == hash_of(plain)
    assert tokens_of(store) == tokens_of(plain)
    assert bool(store) == bool(plain)


def test_a_token_takes_few_bytes() -> None:
    store = ExampleStore()
    for number in range(1000):
        store.add(range(49_000, 49_128), [True] * 128, f"piece {number // 10}")
    held = sum(len(one) * one.itemsize for one in vars(store).values() if hasattr(one, "itemsize"))
    assert held < 2.5 * store.tokens
