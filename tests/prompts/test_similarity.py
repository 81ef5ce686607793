"""How alike soft prompts are: the definitions worked out pair by pair, lengths that differ, and models that do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sordino.errors import BadInput, DoesNotFit
from sordino.prompts.similarity import per_token, pooled, ranked_sources, similarity_map
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.prompt_files import matrix


def prompt(seed: int, tokens: int = 5, width: int = 8, base: BaseRef | None = None) -> SoftPrompt:
    return SoftPrompt(matrix(seed, tokens, width), Metadata(name=f"p{seed}", base=base or BaseRef()))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_both_measures_are_spots_definitions() -> None:
    a, b = matrix(1, 5, 8).astype(float), matrix(2, 3, 8).astype(float)
    assert pooled(a, b) == pytest.approx(cosine(a.mean(0), b.mean(0)))
    pairs = [cosine(x, y) for x, y in itertools.product(a, b)]
    assert per_token(a, b) == pytest.approx(sum(pairs) / len(pairs))


def test_the_map_is_symmetric_and_a_prompt_is_most_like_itself() -> None:
    prompts = [prompt(1), prompt(2, tokens=3), prompt(3)]
    for kind in ("pooled", "per token"):
        found = similarity_map(prompts, kind)
        np.testing.assert_allclose(found, found.T)
        assert (found.diagonal() >= found.max(axis=1) - 1e-12).all()
    np.testing.assert_allclose(similarity_map(prompts, "pooled").diagonal(), 1)


def test_zeros_are_like_nothing() -> None:
    zeros = np.zeros((2, 8), dtype=np.float32)
    assert pooled(zeros, matrix(1, 3, 8)) == 0
    assert per_token(zeros, matrix(1, 3, 8)) == 0


def test_sources_are_ranked_and_a_changed_copy_of_the_target_comes_first() -> None:
    target = prompt(1)
    near = SoftPrompt(target.matrix + 0.1 * matrix(9, 5, 8))
    found = ranked_sources(target, {"far": prompt(4), "near": near, "other": prompt(5)})
    assert found[0].label == "near"
    assert [source.per_token for source in found] == sorted((s.per_token for s in found), reverse=True)


def test_prompts_of_two_models_are_refused() -> None:
    here, there = BaseRef(id="a/x", family="llama", fingerprint="1" * 64), BaseRef(id="b/y", fingerprint="2" * 64)
    with pytest.raises(DoesNotFit, match="a/x"):
        similarity_map([prompt(1, base=here), prompt(2, base=there)], "pooled")
    with pytest.raises(DoesNotFit, match="16 wide"):
        similarity_map([prompt(1), prompt(2, width=16)], "pooled")
    similarity_map([prompt(1, base=here), prompt(2)], "pooled")
    with pytest.raises(BadInput):
        similarity_map([], "pooled")
