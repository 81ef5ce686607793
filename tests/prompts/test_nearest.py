"""Nearest words and norms on a vocabulary of four."""

from __future__ import annotations

import numpy as np
import torch

from sordino.prompts import nearest
from sordino.prompts.nearest import nearest_words, percentiles, word_norms
from sordino.prompts.soft_prompt import SoftPrompt


class Four:
    vocab_size = 4
    device = torch.device("cpu")
    table = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-5.0, 0.0]])

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table[ids]

    def decode(self, ids: list[int]) -> str:
        return ["east", "north", "between", "west"][ids[0]]


PROMPT = SoftPrompt(np.array([[4.0, 3.0], [-1.0, 0.0]], np.float32))


def test_by_cosine_and_by_distance() -> None:
    by_cosine = nearest_words(Four(), PROMPT, count=2)
    assert [[word for word, _ in row] for row in by_cosine] == [["between", "east"], ["west", "north"]]
    np.testing.assert_allclose([value for _, value in by_cosine[0]], [7 / (5 * np.sqrt(2)), 0.8], rtol=1e-6)
    by_distance = nearest_words(Four(), PROMPT, count=2, by="distance")
    assert [[word for word, _ in row] for row in by_distance] == [["between", "north"], ["east", "north"]]
    np.testing.assert_allclose([value for _, value in by_distance[0]], [1.0, np.sqrt(17)], rtol=1e-6)


def test_parts_of_the_vocabulary_change_nothing(monkeypatch) -> None:
    whole = [nearest_words(Four(), PROMPT, count=3, by=by) for by in ("cosine", "distance")], word_norms(Four())
    monkeypatch.setattr(nearest, "_WORDS_AT_ONCE", 1)
    parts = [nearest_words(Four(), PROMPT, count=3, by=by) for by in ("cosine", "distance")], word_norms(Four())
    assert parts[0] == whole[0]
    np.testing.assert_array_equal(parts[1], whole[1])


def test_norms_and_percentiles() -> None:
    norms = word_norms(Four())
    np.testing.assert_allclose(norms, [1, 2, np.sqrt(18), 5], rtol=1e-6)
    np.testing.assert_array_equal(percentiles(np.array([0.5, 2.0, 4.9, 6.0]), norms), [0, 50, 75, 100])
