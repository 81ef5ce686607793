"""Blends, by values reckoned by hand and by what must hold for all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sordino.errors import BadInput, DoesNotFit
from sordino.prompts.attention import PromptAttention
from sordino.prompts.blending import blend, joined_licence, linear, spherical, strictest
from sordino.prompts.soft_prompt import MAX_TOKENS, BaseRef, Metadata, SoftPrompt
from tests.prompt_files import matrix

SMALL = BaseRef(id="org/small", family="llama", d_model=8, n_layers=2, vocab_size=99, fingerprint="f" * 64)


def prompt(seed: int = 0, tokens: int = 4, width: int = 8, **known: object) -> SoftPrompt:
    return SoftPrompt(matrix(seed, tokens, width), Metadata(**{"name": f"p{seed}", "base": SMALL, **known}))


def test_linear_by_hand() -> None:
    a, b = np.array([[2.0, 0.0]], np.float32), np.array([[0.0, 4.0]], np.float32)
    np.testing.assert_array_equal(linear([a, b], [0.75, 0.25]), [[1.5, 1.0]])


def test_spherical_by_hand() -> None:
    a, b = np.array([[2.0, 0.0]], np.float32), np.array([[0.0, 4.0]], np.float32)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(spherical(a, b, 0.5), [[3 * half, 3 * half]], rtol=1e-6)
    # A third of a right angle, and of the way from norm 2 to norm 4.
    third = 8 / 3
    expected = [[third * np.cos(np.pi / 6), third * np.sin(np.pi / 6)]]
    np.testing.assert_allclose(spherical(a, b, 1 / 3), expected, rtol=1e-6)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_spherical_interpolates_norms(seed: int, share: float) -> None:
    a, b = matrix(seed, 3, 5), matrix(seed + 1, 3, 5) * 3
    norms = np.linalg.norm(spherical(a, b, share), axis=1)
    expected = (1 - share) * np.linalg.norm(a, axis=1) + share * np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(norms, expected, rtol=1e-5)


def test_rows_on_one_line_or_zero_are_blended_linearly() -> None:
    a = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], np.float32)
    b = np.array([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]], np.float32)
    np.testing.assert_allclose(spherical(a, b, 0.25), linear([a, b], [0.75, 0.25]), atol=1e-6)


@pytest.mark.parametrize("how", ["linear", "spherical"])
@pytest.mark.parametrize(("weights", "which"), [((1, 0), 0), ((0, 1), 1), ((5, 0), 0)])
def test_all_the_weight_on_one_gives_it_to_the_bit(how: str, weights: tuple[float, float], which: int) -> None:
    both = [prompt(1), prompt(2)]
    assert blend(both, weights, how).prompt.content_hash == both[which].content_hash


def test_a_concatenation_keeps_the_order_of_tokens() -> None:
    a, b = prompt(1, tokens=2), prompt(2, tokens=3)
    made = blend([b, a], [1, 1], "concatenate").prompt
    np.testing.assert_array_equal(made.matrix[:3], b.matrix)
    np.testing.assert_array_equal(made.matrix[3:], a.matrix)


def test_weights_are_made_to_sum_to_one() -> None:
    three = [prompt(seed) for seed in range(3)]
    expected = sum(one.matrix.astype(float) for one in three) / 3
    np.testing.assert_allclose(blend(three, [2, 2, 2], "linear").prompt.matrix, expected, atol=1e-6)


@pytest.mark.parametrize("weights", [(0, 0), (-1, 2), (1,), (float("nan"), 1), (float("inf"), 1)])
def test_what_is_no_weight_is_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(BadInput, match="not weights"):
        blend([prompt(1), prompt(2)], weights, "linear")


def test_what_it_was_made_of_is_in_its_metadata() -> None:
    a = prompt(1, author="Ines", licence="MIT", rating="general", tags=("sea",), supported=("x", "y"))
    b = prompt(2, author="Bo", licence="CC-BY-4.0", rating="mature", tags=("sea", "noir"), supported=("y",))
    made = blend([a, b], [0.7, 0.3], "linear", created="2026-01-02")
    known = made.prompt.metadata
    assert known.training == {
        "blend": {
            "how": "linear",
            "of": [
                {"content_hash": a.content_hash, "tokens": 4, "weight": 0.7, "name": "p1"},
                {"content_hash": b.content_hash, "tokens": 4, "weight": 0.3, "name": "p2"},
            ],
        }
    }
    assert (known.name, known.author, known.rating) == ("p1 0.7 + p2 0.3", "Ines, Bo", "mature")
    assert (known.licence, known.tags, known.supported) == ("MIT AND CC-BY-4.0", ("sea", "noir"), ("y",))
    assert (known.base, known.created) == (SMALL, "2026-01-02")
    assert any("licences differ" in note for note in made.notes)
    assert any("strictest rating is kept: mature" in note for note in made.notes)


def test_licences_and_ratings() -> None:
    assert joined_licence(["", ""]) == ("", [])
    assert joined_licence(["MIT", "MIT"]) == ("MIT", [])
    licence, notes = joined_licence(["MIT", ""])
    assert licence == "MIT"
    assert "no licence" in notes[0]
    assert joined_licence(["MIT OR X", "Y"])[0] == "(MIT OR X) AND Y"
    assert strictest(["", ""]) == ("", [])
    assert strictest(["explicit", "explicit"]) == ("explicit", [])
    assert strictest(["general", ""])[0] == "general"


@pytest.mark.parametrize("how", ["linear", "spherical", "concatenate"])
def test_other_base_models_and_placements_are_refused(how: str) -> None:
    first = prompt(1)
    with pytest.raises(DoesNotFit, match=r"8 wide.*6 wide"):
        blend([first, prompt(2, width=6, base=BaseRef())], [1, 1], how)
    with pytest.raises(DoesNotFit, match="different base models"):
        blend([first, prompt(2, base=BaseRef(id="x/gptj", family="gptj"))], [1, 1], how)
    with pytest.raises(BadInput, match=r"before BOS and some after.*p2: after_bos"):
        blend([first, prompt(2, placement="after_bos")], [1, 1], how)
    with pytest.raises(BadInput, match="two soft prompts or more"):
        blend([first], [1], how)


def test_other_weights_and_unknown_models_are_told() -> None:
    tuned = BaseRef(**{**SMALL.__dict__, "id": "org/tuned", "fingerprint": "a" * 64})
    made = blend([prompt(1), prompt(2, base=tuned)], [1, 1], "linear")
    assert "other weights" in made.notes[0]
    base = made.prompt.metadata.base
    assert (base.id, base.fingerprint, base.family, base.d_model) == ("", "", "llama", 8)
    for pair in ([prompt(1, base=BaseRef()), prompt(2)], [prompt(1), prompt(2, base=BaseRef())]):
        assert "do not say that they are for one base model" in blend(pair, [1, 1], "linear").notes[0]


def test_lengths() -> None:
    pair = [prompt(1, tokens=4), prompt(2, tokens=5)]
    for how in ("linear", "spherical"):
        with pytest.raises(BadInput, match="p1: 4, p2: 5; shorten the longer ones with sordino prune --tokens"):
            blend(pair, [1, 1], how)
    with pytest.raises(BadInput, match="give --how linear"):
        blend([prompt(1), prompt(2), prompt(3)], [1, 1, 1], "spherical")
    with pytest.raises(BadInput, match="too many virtual tokens"):
        blend([prompt(1, tokens=MAX_TOKENS), prompt(2, tokens=1)], [1, 1], "concatenate")


def test_one_hold_and_strength_is_kept_and_several_are_refused() -> None:
    held = PromptAttention(hold=128, strength=2)
    one, other = prompt(1, attention=held), prompt(2, attention=held)
    assert blend([one, other], [1, 1], "linear").prompt.metadata.attention == held
    with pytest.raises(BadInput, match=r"p1: hold 128, strength 2, p2: plain.*--hold"):
        blend([one, prompt(2)], [1, 1], "linear")
