"""What is kept, what is let go, and what is never let go."""

from __future__ import annotations

from sordino.engine.prefix_cache import Key, PrefixCache
from sordino.prompts.attention import PLAIN, PromptAttention
from tests.engine.counting import CountedDict, steps_of

A, B, C = (("model", name, "start") for name in "abc")


def cache_of(budget: int, *prompts: Key) -> PrefixCache[str]:
    cache: PrefixCache[str] = PrefixCache(budget)
    for key in prompts:
        cache.release(cache.keep_prompt(key, key[1], 10))
    return cache


def used(cache: PrefixCache[str], key: Key) -> bool:
    kept = cache.prompt(key)
    if kept is not None:
        cache.release(kept)
    return kept is not None


def test_the_least_recently_used_goes_first() -> None:
    cache = cache_of(20, A, B)
    assert used(cache, A)
    cache.release(cache.keep_prompt(C, "c", 10))
    assert (used(cache, A), used(cache, B), used(cache, C)) == (True, False, True)
    assert cache.evictions == 1


def test_what_rows_stand_on_stays_and_goes_with_the_last_of_them() -> None:
    cache = cache_of(10)
    first, second = cache.keep_prompt(A, "a", 10), cache.keep_prompt(B, "b", 10)
    again = cache.prompt(A)
    assert again is first
    assert cache.bytes == 20
    cache.release(first)
    assert cache.bytes == 20
    cache.release(again)
    assert (cache.bytes, used(cache, A)) == (10, False)
    cache.release(second)
    assert used(cache, B)


def test_the_same_name_with_another_placement_or_model_is_another_prefix() -> None:
    cache = cache_of(100, A)
    assert not used(cache, ("model", "a", "after_bos"))
    assert not used(cache, ("another", "a", "start"))


def test_texts_to_which_a_prompt_was_held_otherwise_are_others() -> None:
    cache = cache_of(100, A)
    held = PromptAttention(hold=2)
    cache.keep_text(A, [1, 2], "plain", 10)
    cache.keep_text(A, [1, 2, 3], "held", 10, attention=held)
    found = [cache.longest(A, [1, 2, 3], attention=attention) for attention in (PLAIN, held, PromptAttention(hold=3))]
    assert [text and text[0].state for text in found] == ["plain", "held", None]
    assert (cache.hits, used(cache, A)) == (0, True)


def test_the_text_that_begins_most_alike_is_found() -> None:
    cache = cache_of(1000, A, B)
    cache.keep_text(A, [1, 2, 3, 4], "short", 10)
    cache.keep_text(A, [1, 2, 9], "other", 10)
    cache.keep_text(B, [1, 2, 3, 4, 5, 6], "foreign", 10)
    found = cache.longest(A, [1, 2, 3, 7])
    assert found is not None
    assert (found[0].state, found[1]) == ("short", 3)
    assert cache.longest(A, [5]) is None
    assert cache.longest(A, []) is None


def test_a_text_takes_the_place_of_those_it_goes_on() -> None:
    cache = cache_of(1000, A)
    for ids in ([1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 5]):
        cache.keep_text(A, ids, str(ids), 10)
    assert cache.bytes == 10 + 20
    assert len(cache) == 3


def test_a_text_larger_than_the_budget_is_not_kept() -> None:
    cache = cache_of(50, A)
    cache.keep_text(A, [1, 2], "large", 100)
    assert cache.longest(A, [1, 2]) is None
    assert used(cache, A)


def test_texts_take_half_of_the_room_and_push_no_prefix_out() -> None:
    cache = cache_of(100, A, B, C)
    for number in range(20):
        cache.keep_text(A, [number, 1, 2], "text", 10)
    assert cache.bytes == 30 + 50
    assert all(used(cache, key) for key in (A, B, C))
    assert cache.longest(A, [14, 1]) is None
    assert cache.longest(A, [15, 1]) is not None


def test_evictions_of_texts_are_not_counted_as_prefixes() -> None:
    cache = cache_of(100, A)
    for number in range(8):
        cache.keep_text(A, [number, 1], "text", 10)
    assert (cache.evictions, cache.text_evictions) == (0, 3)
    for key in (B, C, ("model", "d", "start"), ("model", "e", "start"), ("model", "f", "start")):
        cache.release(cache.keep_prompt(key, "large", 20))
    assert cache.evictions > 0
    assert cache.bytes <= 100


def test_a_text_that_cannot_be_used_leaves_the_next_best() -> None:
    cache = cache_of(1000, A)
    cache.keep_text(A, [1, 2, 3, 4, 9], "long", 10)
    cache.keep_text(A, [1, 2, 3], "whole", 10)
    found = cache.longest(A, [1, 2, 3, 4, 5], lambda kept, shared: shared == len(kept.ids))
    assert found is not None
    assert (found[0].state, found[1]) == ("whole", 3)


def cost_of_a_request(entries: int) -> int:
    """Of a request, with so many prefixes, and texts after one of them."""
    cache: PrefixCache[str] = PrefixCache(100 * entries)
    for number in range(entries):
        cache.release(cache.keep_prompt(("model", str(number), "start"), "prefix", 10))
        cache.keep_text(A, [7, number, 1, 2], "text", 10)
    running = cache.keep_prompt(A, "a", 10)
    for name in ("_prompts", "_idle", "_texts"):
        setattr(cache, name, CountedDict(getattr(cache, name)))

    def step() -> None:
        cache.prompt(A)
        found = cache.longest(A, [7, entries // 2, 1, 3])
        assert found is not None
        assert found[1] == 3
        cache.longest(A, [7, -1])
        cache.longest(A, [7, entries // 2, 1, 3], lambda kept, shared: False)
        cache.keep_text(A, [7, entries // 2, 1, 3, 4], "text", 10)
        cache.release(running)
        cache.release(running)
        cache.budget = cache.bytes - 5
        cache.keep_prompt(("model", "new", "start"), "prefix", 10)

    return steps_of(step)


def test_a_step_costs_the_same_whatever_is_cached() -> None:
    assert cost_of_a_request(10_000) <= cost_of_a_request(100)
