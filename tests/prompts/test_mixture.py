"""Mixtures as values: what is refused, what is equal."""

from __future__ import annotations

import numpy as np
import pytest

from sordino.errors import BadInput
from sordino.prompts.mixture import Gate, Mixture, components_of, uniform
from sordino.prompts.soft_prompt import Metadata, SoftPrompt


def prompt(value: float, tokens: int = 2, width: int = 3, **said: object) -> SoftPrompt:
    return SoftPrompt(np.full((tokens, width), value, dtype=np.float32), Metadata(**said))


def test_weights_sum_to_one() -> None:
    assert Mixture((prompt(1), prompt(2)), np.array([3.0, 1.0])).weights_K.tolist() == [0.75, 0.25]


@pytest.mark.parametrize("weights", [[1.0], [1.0, -0.1], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], [[0.5, 0.5]]])
def test_what_is_no_weights(weights: object) -> None:
    with pytest.raises(BadInput, match="not weights"):
        Mixture((prompt(1), prompt(2)), np.array(weights))


def test_what_is_no_numbers_at_all() -> None:
    for weights in (["much", "little"], [None, 1], [[1], [1, 2]]):
        with pytest.raises(BadInput, match="not weights"):
            Mixture((prompt(1), prompt(2)), weights)  # type: ignore[arg-type]


def test_a_mixture_is_no_component() -> None:
    mixed = Mixture((prompt(1), prompt(2)), uniform(2))
    with pytest.raises(BadInput, match="mixture: it cannot be a component"):
        Mixture((prompt(1), mixed), uniform(2))  # type: ignore[arg-type]


def test_components_must_agree_in_width() -> None:
    with pytest.raises(BadInput, match="different widths"):
        Mixture((prompt(1), prompt(1, width=4)), uniform(2))


@pytest.mark.parametrize("count", [0, 17])
def test_the_number_of_components(count: int) -> None:
    with pytest.raises(BadInput, match="number of components"):
        Mixture(tuple(prompt(1) for _ in range(count)), uniform(max(count, 1)))


def test_a_gate_is_of_the_components() -> None:
    with pytest.raises(BadInput, match="other components"):
        Mixture((prompt(1),), uniform(1), gate=Gate(np.zeros((2, 3), np.float32), np.zeros(2, np.float32)))


def test_a_gate_gives_weights() -> None:
    gate = Gate(np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), np.zeros(2, np.float32))
    np.testing.assert_allclose(gate.weights(np.array([np.log(3.0), 0.0])), [0.75, 0.25])


def test_the_hash_is_of_what_is_said_and_not_of_names() -> None:
    mixture = Mixture((prompt(1, name="a"), prompt(2)), uniform(2))
    assert Mixture((prompt(1, name="b"), prompt(2)), uniform(2)).content_hash == mixture.content_hash
    others = [
        Mixture((prompt(2), prompt(1)), uniform(2)),
        Mixture((prompt(1), prompt(2)), np.array([0.6, 0.4])),
        Mixture((prompt(1), prompt(2)), uniform(2), "logits"),
        Mixture((prompt(1, placement="after_bos"), prompt(2)), uniform(2)),
        Mixture((prompt(1), prompt(2)), uniform(2), gate=Gate(np.zeros((2, 3), np.float32), np.zeros(2, np.float32))),
    ]
    assert len({mixture.content_hash, *(other.content_hash for other in others)}) == 6


def test_the_longest_component_counts() -> None:
    assert Mixture((prompt(1, tokens=2), prompt(2, tokens=5)), uniform(2)).n_tokens == 5


def test_what_a_text_is_run_behind() -> None:
    one, other = prompt(1), prompt(2)
    assert components_of(None) == (None,)
    assert components_of(one) == (one,)
    assert components_of(Mixture((one, other), uniform(2))) == (one, other)


def test_a_gate_has_nothing_to_say_of_an_empty_text() -> None:
    gate = Gate(np.eye(2, 3, dtype=np.float32), np.array([5, -5], dtype=np.float32))
    parts = tuple(SoftPrompt(np.full((1, 3), value, dtype=np.float32)) for value in (0.5, 1.5))
    mixture = Mixture(parts, np.array([0.25, 0.75]), gate=gate)
    np.testing.assert_array_equal(mixture.weights_for(np.zeros(3)), [0.25, 0.75])
    read = np.array([0.1, 0.2, 0.3])
    np.testing.assert_array_equal(mixture.weights_for(read), gate.weights(read))
    np.testing.assert_array_equal(mixture.with_weights([1, 1]).weights_for(read), [0.5, 0.5])
