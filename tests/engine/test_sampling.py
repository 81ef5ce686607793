"""Each step of sampling against what others compute: transformers' warpers, and the formulas written out plainly."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from sordino.engine.sampling import (
    REPETITION,
    TEMPERATURE,
    TFS,
    TOP_A,
    TOP_K,
    TOP_P,
    TYPICAL,
    Drawn,
    Sampling,
    distribution,
    sample,
)
from sordino.engine.seen_tokens import SeenTokens
from sordino.errors import ConfigError, ModelError

OFF = Sampling(temperature=1.0, top_p=1.0)
V = 700
# KoboldAI's clients send this one.
KOBOLD_ORDER = (REPETITION, TOP_K, TOP_A, TFS, TYPICAL, TOP_P, TEMPERATURE)


def seen_of(ids: Sequence[int], sampling: Sampling, *, n_new: int = 0) -> SeenTokens:
    seen = SeenTokens(ids[: len(ids) - n_new], sampling.repetition_range)
    for token in ids[len(ids) - n_new :]:
        seen.push(token)
    return seen


def drawn_of(
    logits_V: torch.Tensor | np.ndarray,
    ids: Sequence[int],
    sampling: Sampling,
    random: torch.Generator,
    *,
    n_new: int = 0,
) -> Drawn:
    return sample(logits_V, seen_of(ids, sampling, n_new=n_new), sampling, random)


def candidates(logits_V: np.ndarray, ids: Sequence[int], sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    return distribution(logits_V, seen_of(ids, sampling), sampling)


def random_logits(seed: int, *, scale: float = 2.5) -> torch.Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def ours(logits_V: torch.Tensor, sampling: Sampling, seen: Sequence[int] = ()) -> np.ndarray:
    ids, probs = candidates(logits_V.numpy(), seen, sampling)
    assert (np.diff(probs) <= 1e-12).all()
    found = np.zeros(len(logits_V))
    found[ids] = probs
    return found


def theirs(logits_V: torch.Tensor, *steps: LogitsProcessor, seen: Sequence[int] = ()) -> np.ndarray:
    scores = logits_V[None]
    for step in steps:
        scores = step(torch.tensor([list(seen)]), scores)
    return torch.softmax(scores[0], dim=0).numpy()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("sampling", "steps"),
    [
        (replace(OFF, temperature=0.6), [TemperatureLogitsWarper(0.6)]),
        (replace(OFF, top_k=40), [TopKLogitsWarper(40)]),
        (replace(OFF, top_k=5000), []),
        (replace(OFF, top_p=0.8), [TopPLogitsWarper(0.8)]),
        (replace(OFF, top_p=0.9999), [TopPLogitsWarper(0.9999)]),
        (replace(OFF, min_p=0.05), [MinPLogitsWarper(0.05)]),
        (replace(OFF, typical=0.7), [TypicalLogitsWarper(0.7)]),
        (replace(OFF, repetition_penalty=1.3), [RepetitionPenaltyLogitsProcessor(1.3)]),
        (
            replace(OFF, temperature=0.7, top_k=50, top_p=0.9, repetition_penalty=1.2),
            [
                RepetitionPenaltyLogitsProcessor(1.2),
                TemperatureLogitsWarper(0.7),
                TopKLogitsWarper(50),
                TopPLogitsWarper(0.9),
            ],
        ),
    ],
)
def test_steps_are_those_of_transformers(seed: int, sampling: Sampling, steps: Sequence[LogitsProcessor]) -> None:
    seen = [3, 9, 9, 600]
    np.testing.assert_allclose(
        ours(random_logits(seed), sampling, seen), theirs(random_logits(seed), *steps, seen=seen), atol=1e-9
    )


def plain_top_a(probs: list[float], a: float) -> list[bool]:
    return [p >= a * max(probs) ** 2 for p in probs]


def plain_tail_free(probs: list[float], z: float) -> list[bool]:
    """Second differences of the sorted probabilities, normalised and cumulated; words after z are the tail."""
    first = [b - a for a, b in itertools.pairwise(probs)]
    second = [abs(b - a) for a, b in itertools.pairwise(first)]
    keep, sum_so_far = [True], 0.0
    for bend in second:
        sum_so_far += bend / sum(second)
        keep.append(sum_so_far <= z)
    return [*keep, False]


@pytest.mark.parametrize(
    ("settings_", "plain", "value"),
    [({"top_a": 0.2}, plain_top_a, 0.2), ({"tfs": 0.9}, plain_tail_free, 0.9), ({"tfs": 0.3}, plain_tail_free, 0.3)],
)
@pytest.mark.parametrize("seed", range(3))
def test_top_a_and_tail_free(
    seed: int, settings_: dict[str, float], plain: Callable[[list[float], float], list[bool]], value: float
) -> None:
    logits = random_logits(seed)
    order = torch.argsort(logits, descending=True, stable=True)
    probs = torch.softmax(logits, dim=0)[order]
    keep = torch.tensor(plain(probs.tolist(), value))
    assert 1 <= int(keep.sum()) < V
    expected = torch.zeros(V, dtype=torch.float64).index_copy_(0, order, probs * keep)
    np.testing.assert_allclose(ours(logits, replace(OFF, **settings_)), (expected / expected.sum()).numpy(), atol=1e-12)


def test_the_order_is_the_users() -> None:
    """Temperature after top_p leaves it the words that it had at 1."""
    logits = random_logits(0)
    hot = replace(OFF, temperature=3.0, top_p=0.7)
    few, many = ours(logits, replace(hot, order=KOBOLD_ORDER)), ours(logits, hot)
    assert (few > 0).sum() == (ours(logits, replace(OFF, top_p=0.7)) > 0).sum() < (many > 0).sum()
    kept = few > 0
    sharp = torch.softmax(logits / 3.0, dim=0).numpy()[kept]
    np.testing.assert_allclose(few[kept], sharp / sharp.sum(), atol=1e-12)


def test_a_penalty_behind_a_filter_is_the_same_penalty() -> None:
    logits = torch.tensor([2.0, 1.5, 1.0, -3.0], dtype=torch.float64)
    late = replace(
        OFF, top_k=2, repetition_penalty=2.0, order=(TOP_K, REPETITION, TEMPERATURE, TOP_A, TFS, TYPICAL, TOP_P)
    )
    np.testing.assert_allclose(ours(logits, late, [0, 3]), theirs(torch.tensor([1.0, 1.5, -1e9, -1e9])), atol=1e-12)


@pytest.mark.parametrize(("extent", "slope"), [(0, 0.0), (5, 0.0), (5, 2.0), (40, 3.5), (0, 0.7)])
def test_the_range_and_slope_of_the_penalty_are_koboldais(extent: int, slope: float) -> None:
    """As KoboldAI's AdvancedRepetitionPenaltyLogitsProcessor: places -1 to 1 over the whole range, bent, mapped to 1 .. penalty."""
    logits, seen, penalty = random_logits(1), [5, 6, 7, 8, 5, 9, 10, 11, 6], 1.8
    expected = logits.clone()
    reach = min(extent or len(seen), len(seen))
    for place, word in enumerate(seen[-reach:]):
        full = extent or len(seen)
        x = 2 * (full - reach + place) / (full - 1) - 1
        divisor = penalty
        if slope:
            divisor = 1 + (slope * x / (1 + abs(x) * (slope - 1)) + 1) / 2 * (penalty - 1)
        # The last place of a word decides.
        expected[word] = logits[word] / divisor if logits[word] > 0 else logits[word] * divisor
    sampling = replace(OFF, repetition_penalty=penalty, repetition_range=extent, repetition_slope=slope)
    np.testing.assert_allclose(ours(logits, sampling, seen), torch.softmax(expected, dim=0).numpy(), atol=1e-12)


def test_presence_and_frequency_count_new_tokens_only() -> None:
    logits = torch.tensor([3.0, 2.9, 2.8, 2.7])
    greedy = Sampling(temperature=0, presence_penalty=0.15)
    assert drawn_of(logits, [0, 0, 0], greedy, torch.Generator(), n_new=0).token == 0
    assert drawn_of(logits, [0, 0, 0], greedy, torch.Generator(), n_new=3).token == 1
    assert drawn_of(logits, [0, 0, 0], replace(greedy, frequency_penalty=0.02), torch.Generator(), n_new=3).token == 1
    assert drawn_of(logits, [0, 1, 1], replace(greedy, frequency_penalty=0.1), torch.Generator(), n_new=3).token == 2


def test_a_bias_comes_first() -> None:
    logits = torch.tensor([3.0, 1.0, 0.0])
    biased = Sampling(temperature=0, logit_bias=((0, -100.0), (2, 1.5)))
    assert drawn_of(logits, [], biased, torch.Generator()).token == 2


def test_logprobs_are_the_models_own() -> None:
    logits = random_logits(2).float()
    wild = Sampling(temperature=2.0, top_k=3, logit_bias=((7, 50.0),), repetition_penalty=1.5, logprobs=4)
    drawn = drawn_of(logits, [7], wild, torch.Generator())
    expected = torch.log_softmax(logits.double(), dim=0)
    assert drawn.token == 7
    assert drawn.logprob == pytest.approx(float(expected[7]), abs=1e-9)
    best = expected.topk(4)
    assert [word for word, _ in drawn.top] == best.indices.tolist()
    np.testing.assert_allclose([value for _, value in drawn.top], best.values.numpy(), atol=1e-9)
    assert drawn_of(logits, [], replace(wild, logprobs=None), torch.Generator()).logprob is None
    assert drawn_of(logits, [], replace(wild, logprobs=0), torch.Generator()).top == ()


def test_of_equals_the_first_word_comes_first() -> None:
    """Whatever the way they were sorted: whole, or the few largest."""
    logits = torch.zeros(5000, dtype=torch.float64)
    assert candidates(logits.numpy(), [], replace(OFF, top_k=3))[0].tolist() == [0, 1, 2]
    assert candidates(logits.numpy(), [], replace(OFF, top_p=0.0005))[0].tolist() == [0, 1, 2]
    assert candidates(logits.numpy(), [], OFF)[0][:3].tolist() == [0, 1, 2]


def test_one_number_of_the_stream_is_used_for_a_token() -> None:
    random, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    logits = random_logits(3)
    for sampling in (OFF, replace(OFF, top_k=1), replace(OFF, top_p=0.5, typical=0.5, tfs=0.9)):
        drawn_of(logits, [], sampling, random)
    for _ in range(3):
        torch.rand((), generator=other, dtype=torch.float64)
    drawn_of(logits, [], replace(OFF, temperature=0), random)
    assert torch.equal(random.get_state(), other.get_state())


@settings(max_examples=200, deadline=None)
@given(
    logits=st.lists(st.floats(-50, 50), min_size=1, max_size=30),
    order=st.permutations(range(7)),
    top_k=st.integers(0, 5),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    typical=st.floats(0.01, 1),
    top_a=st.floats(0, 1),
    tfs=st.floats(0.01, 1),
    temperature=st.floats(0.05, 5),
    penalty=st.floats(0.5, 3),
    seen=st.lists(st.integers(0, 0), max_size=3),
)
def test_something_is_always_left(
    logits, order, top_k, top_p, min_p, typical, top_a, tfs, temperature, penalty, seen
) -> None:
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical=typical, top_a=top_a, tfs=tfs,
        repetition_penalty=penalty, order=tuple(order),
    )  # fmt: skip
    ids, probs = candidates(np.array(logits), seen, sampling)
    assert len(ids) == len(set(ids.tolist())) >= 1
    assert probs.sum() == pytest.approx(1)
    assert not top_k or len(ids) <= max(top_k, 1)
    assert 0 <= drawn_of(torch.tensor(logits), seen, sampling, torch.Generator()).token < len(logits)


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("typical", 0, "--typical"),
        ("top_a", 1.5, "--top-a"),
        ("tfs", 0, "--tfs"),
        ("repetition_range", -1, "--repetition-range"),
        ("repetition_slope", -1, "--repetition-slope"),
        ("presence_penalty", 3, "--presence-penalty"),
        ("frequency_penalty", -3, "--frequency-penalty"),
        ("order", (0, 1, 2), "--order"),
        ("order", (0, 0, 1, 2, 3, 4, 5), "--order"),
        ("logit_bias", ((1, float("nan")),), "--logit-bias"),
        ("logprobs", 21, "--logprobs"),
        ("temperature", float("nan"), "--temperature"),
    ],
)
def test_settings_out_of_range_name_their_flag(field: str, value: object, flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        Sampling(**{field: value})  # type: ignore[arg-type]


@given(
    values=st.lists(st.sampled_from([-2.0, -0.5, 0.0, 1.0, 1.0000001, 3.0, float("-inf")]), min_size=2, max_size=8),
    biases=st.lists(st.tuples(st.integers(0, 1), st.sampled_from([-100.0, -1.0, 0.0, 0.5, 2.0, 1e9])), max_size=4),
)
def test_biases_of_a_greedy_row_are_as_in_the_plain_way(values: list[float], biases: list[tuple[int, float]]) -> None:
    """logprobs=0 asks for nothing that could change the word, and takes the whole vocabulary to float64."""
    logits = torch.tensor([*values, 0.25])
    before = logits.clone()
    quick = drawn_of(logits, [], Sampling(temperature=0, logit_bias=tuple(biases)), torch.Generator())
    assert torch.equal(logits, before)
    plain = drawn_of(logits, [], Sampling(temperature=0, logit_bias=tuple(biases), logprobs=0), torch.Generator())
    assert quick.token == plain.token


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("word", [0, 3])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(temperature=0, logit_bias=((3, -100.0),)),
        Sampling(temperature=0, repetition_penalty=1.2),
        OFF,
        Sampling(),
    ],
)
def test_logits_that_are_no_numbers_are_an_error(sampling: Sampling, word: int, value: float) -> None:
    logits = torch.tensor([0.5, float("-inf"), 2.0, 1.0])
    assert drawn_of(logits, [0], sampling, torch.Generator()).token != 1
    logits[word] = value
    for form in (logits, logits.numpy()):
        with pytest.raises(ModelError, match="not finite"):
            drawn_of(form, [0], sampling, torch.Generator())


@pytest.mark.parametrize("sampling", [Sampling(temperature=0, logit_bias=((2, -1.0),)), OFF, replace(OFF, logprobs=2)])
def test_an_array_is_drawn_from_as_a_tensor_is(sampling: Sampling) -> None:
    logits = torch.randn(V, generator=torch.Generator().manual_seed(1))
    drawn = [drawn_of(form, [], sampling, torch.Generator().manual_seed(2)) for form in (logits, logits.numpy())]
    assert drawn[0] == drawn[1]


@settings(max_examples=200, deadline=None)
@given(
    context=st.lists(st.integers(0, 9), max_size=12),
    new=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    window=st.integers(0, 15),
    asked=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_counts_kept_as_tokens_come_are_those_counted_anew(
    context: list[int], new: list[int], window: int, asked: list[bool]
) -> None:
    kept = SeenTokens(context, window)
    for at, token in enumerate(new):
        kept.push(token)
        ids = context + new[: at + 1]
        first = max(0, len(ids) - window) if window else 0
        plain = {word: place for place, word in enumerate(ids) if place >= first}
        assert kept.new == Counter(new[: at + 1])
        if asked[at]:
            assert dict(zip(*(array.tolist() for array in kept.last_places()), strict=True)) == plain


@pytest.mark.parametrize("window", [0, 300])
def test_a_token_costs_the_same_behind_a_long_text(window: int) -> None:
    class Counted(list[int]):
        reads = 0

        def __getitem__(self, at):
            Counted.reads += 1
            return super().__getitem__(at)

        def __iter__(self):
            raise AssertionError("the whole text is read again")

    sampling = replace(OFF, repetition_penalty=1.2, repetition_range=window, frequency_penalty=0.5)
    seen = SeenTokens(range(500), window)
    logits, random = random_logits(3), torch.Generator()
    sample(logits, seen, sampling, random)
    seen.ids = Counted(seen.ids)
    for token in range(100):
        seen.push(token)
        sample(logits, seen, sampling, random)
    assert Counted.reads <= 3 * 100
