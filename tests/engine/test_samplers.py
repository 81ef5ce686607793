"""DRY, XTC, dynamic temperature and smoothing against their published definitions, written out plainly."""

from __future__ import annotations

import math
import random as stdlib_random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.engine.generate import TextRequest, draw
from sordino.engine.samplers import TokenInfo, dry_penalties, heated, without_top_choices
from sordino.engine.sampling import TEMPERATURE, Sampling, distribution, sample
from sordino.engine.seen_tokens import SeenTokens
from sordino.errors import ConfigError
from tests.tiny_models import tiny_base

OFF = Sampling(temperature=1.0, top_p=1.0)
# Token 0 is a line end, 1 a colon, 9 ends a text.
WORDS = TokenInfo(frozenset({9}), lambda token: {0: "\n", 1: " said:"}.get(token, f"w{token}"))


def plain_dry(ids: list[int], multiplier: float, base: float, allowed: int, extent: int) -> dict[int, float]:
    """As p-e-w's first version: every earlier place of the last token, walked backwards."""
    row = ids[-extent:] if extent else ids
    if not row or row[-1] in (0, 1):
        return {}
    longest: dict[int, int] = {}
    for i in range(len(row) - 1):
        following = row[i + 1]
        if row[i] != row[-1] or following in (0, 1):
            continue
        length = 1
        while i - length >= 0 and row[i - length] == row[-1 - length] and row[-1 - length] not in (0, 1):
            length += 1
        longest[following] = max(length, longest.get(following, 0))
    return {w: multiplier * base ** (n - allowed) for w, n in longest.items() if n >= allowed}


@settings(max_examples=300, deadline=None)
@given(
    ids=st.lists(st.integers(0, 4), max_size=40),
    multiplier=st.floats(0.1, 3),
    base=st.floats(1, 3),
    allowed=st.integers(0, 4),
    extent=st.integers(0, 12),
)
def test_dry_is_the_plain_walk(ids: list[int], multiplier: float, base: float, allowed: int, extent: int) -> None:
    sampling = replace(OFF, dry_multiplier=multiplier, dry_base=base, dry_allowed_length=allowed, dry_range=extent)
    found, penalties = dry_penalties(ids, sampling, WORDS)
    expected = plain_dry(ids, multiplier, base, allowed, extent)
    assert dict(zip(found.tolist(), penalties.tolist(), strict=True)) == pytest.approx(expected)


def test_dry_of_a_long_loop_is_finite_and_quick() -> None:
    sampling = replace(OFF, dry_multiplier=100, dry_base=10, dry_allowed_length=0)
    found, penalties = dry_penalties([7] * 20_000, sampling, WORDS)
    assert found.tolist() == [7]
    assert np.isfinite(penalties).all()


@pytest.mark.parametrize("seed", range(4))
def test_xtc_leaves_only_the_least_likely_of_the_top_choices(seed: int) -> None:
    generator = stdlib_random.Random(seed)
    probs = sorted((generator.random() ** 3 for _ in range(12)), reverse=True)
    probs = [p / sum(probs) for p in probs]
    ids = np.arange(20, 32)
    keep = without_top_choices(ids, np.array(probs), replace(OFF, xtc_threshold=0.1), WORDS)
    above = [i for i, p in enumerate(probs) if p >= 0.1]
    assert np.flatnonzero(~keep).tolist() == above[:-1]


@pytest.mark.parametrize("kept", [0, 9])
def test_xtc_leaves_all_where_a_line_or_the_text_might_end(kept: int) -> None:
    probs = np.array([0.4, 0.35, 0.2, 0.05])
    some = replace(OFF, xtc_threshold=0.1)
    assert without_top_choices(np.array([5, kept, 6, 7]), probs, some, WORDS).all()
    # As the one that stays in any case, it protects nothing.
    assert without_top_choices(np.array([5, 6, kept, 7]), probs, some, WORDS).tolist() == [False, False, True, True]


def test_xtc_acts_with_its_probability() -> None:
    logits = torch.log(torch.tensor([0.01] * 5 + [0.55, 0.3, 0.1]))
    random = torch.Generator().manual_seed(1)
    often = replace(OFF, xtc_probability=0.5, xtc_threshold=0.2)
    drawn = [sample(logits, SeenTokens([]), often, random, WORDS).token for _ in range(4000)]
    # Word 5 comes when XTC does not act: 0.5 * 0.55.
    assert drawn.count(5) / 4000 == pytest.approx(0.275, abs=0.03)
    always = replace(often, xtc_probability=1.0)
    assert 5 not in [sample(logits, SeenTokens([]), always, random, WORDS).token for _ in range(200)]


@pytest.mark.parametrize(("reach", "exponent"), [(0.5, 1.0), (0.3, 2.0), (2.0, 0.5)])
def test_the_dynamic_temperature_follows_the_entropy(reach: float, exponent: float) -> None:
    logits = np.random.default_rng(3).normal(size=50) * 2
    probs = np.exp(logits) / np.exp(logits).sum()
    share = -sum(p * math.log(p) for p in probs) / math.log(50)
    low, high = max(0, 1.2 - reach), 1.2 + reach
    expected = logits / (low + (high - low) * share**exponent)
    some = replace(OFF, temperature=1.2, dynatemp_range=reach, dynatemp_exponent=exponent)
    np.testing.assert_allclose(heated(logits, some), expected, rtol=1e-9)


@pytest.mark.parametrize(("factor", "curve"), [(0.3, 1.0), (0.2, 2.5), (1.5, 3.0), (0.4, 6.0)])
def test_smoothing_is_a_parabola_with_a_cubic_term(factor: float, curve: float) -> None:
    logits = np.random.default_rng(4).normal(size=30) * 3
    peak = logits.max()
    expected = [
        peak - (3 - curve) / 2 * factor * (x - peak) ** 2 + (curve - 1) / 2 * factor * (x - peak) ** 3 for x in logits
    ]
    some = replace(OFF, smoothing_factor=factor, smoothing_curve=curve)
    np.testing.assert_allclose(heated(logits, some), expected, rtol=1e-9)
    # Also where the candidates were sorted before, and words cannot come.
    masked = np.concatenate([logits, [-np.inf]])
    for order in (some.order, (*(step for step in some.order if step != TEMPERATURE), TEMPERATURE)):
        ids, probs = distribution(masked, SeenTokens([]), replace(some, top_k=31, order=order))
        assert (np.diff(probs) <= 1e-12).all()
        assert np.isfinite(probs).all()
        weights = np.exp(np.array(expected) - max(expected))
        np.testing.assert_allclose(probs[ids < 30], (weights / weights.sum())[ids[ids < 30]], atol=1e-9)


def greedy_word(logits: list[float], ids: list[int], new: list[int], sampling: Sampling) -> int:
    seen = SeenTokens(ids)
    for token in new:
        seen.push(token)
    return sample(torch.tensor(logits), seen, replace(sampling, temperature=0), torch.Generator(), WORDS).token


def test_a_greedy_row_is_kept_from_repeating_too() -> None:
    logits = [0.0] * 5 + [3.0, 2.5, 0.0, 0.0, 0.0]
    assert greedy_word(logits, [3, 4, 5, 3, 4], [], OFF) == 5
    assert greedy_word(logits, [3, 4, 5, 3, 4], [], replace(OFF, dry_multiplier=1.0)) == 6


def test_the_end_is_forbidden_before_the_least_of_new_tokens() -> None:
    logits = [0.0] * 8 + [1.0, 3.0]
    least = replace(OFF, min_tokens=2)
    assert [greedy_word(logits, [3], [4] * n, least) for n in (0, 1, 2)] == [8, 8, 9]
    assert greedy_word(logits, [3], [4] * 2, replace(OFF, end="forbid")) == 8


def test_a_banned_sequence_never_ends() -> None:
    logits = [0.0] * 7 + [3.0, 2.0, 0.0]
    banned = replace(OFF, banned=((3, 4, 7), (8,)))
    assert greedy_word(logits, [3], [4], replace(banned, banned=((3, 4, 7),))) == 8
    assert greedy_word(logits, [3, 4], [4], banned) == 7
    assert greedy_word(logits, [4], [], banned) == 7
    with pytest.raises(ConfigError, match="--banned"):
        Sampling(banned=((),))


def test_a_text_goes_on_behind_its_end() -> None:
    base = tiny_base("llama", dtype=torch.float32)
    end = min(base.stop_ids)
    pushed = Sampling(max_tokens=6, temperature=0, logit_bias=((end, 1000.0),))
    for kind, tokens in (("stop", 0), ("ignore", 6), ("forbid", 6)):
        (drawn,) = draw(base, [TextRequest("The sea")], replace(pushed, end=kind), rows=1)
        assert len(drawn.tokens) == tokens
        assert all((one.token == end) == (kind == "ignore") for one in drawn.tokens)
