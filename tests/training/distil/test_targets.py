"""A student predicts the teacher's distribution: that of plain concatenation, nearly whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sordino.training.distil import targets
from sordino.training.distil.openings import make_openings
from sordino.training.distil.source import LongText
from sordino.training.distil.targets import examples, soft_targets
from sordino.training.distil.teacher import continuations
from tests.training.distil.lessons import WORDS, small_base, small_config


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("template", ["chat", "plain"])
def test_targets_are_the_probabilities_of_plain_concatenation(family: str, template: str, tmp_path: Path) -> None:
    base, config = small_base(family), small_config(tmp_path, template=template)
    openings = make_openings(base, LongText(WORDS), config)
    written = continuations(base, openings, config, tmp_path)
    made = examples(base, openings, written)
    assert len(made) == len(written) > 8
    for one, example in zip(written, made, strict=True):
        front = [*base.bos_ids, *openings.prefix, *one.opening.behind]
        new = [token for token, labelled in zip(example.ids, example.labelled, strict=True) if labelled]
        with torch.no_grad():
            logits_TV = base.network(input_ids=torch.tensor([[*front, *new]])).logits[0]
        p_NV = logits_TV[len(front) - 1 : -1].double().softmax(1)
        assert example.ids == (*one.opening.alone, *new)
        assert example.soft is not None
        ids_Nk, weights_Nk = torch.from_numpy(example.soft.ids_Nk), torch.from_numpy(example.soft.weights_Nk)
        assert len(ids_Nk) == len(new)
        torch.testing.assert_close(weights_Nk[:, :-1].double(), p_NV.gather(1, ids_Nk[:, :-1]), atol=1e-5, rtol=1e-4)
        assert ids_Nk[:, -1].tolist() == new


def test_targets_hold_the_likeliest_words_and_a_rare_one_that_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "TARGETS", 2)
    p_nV = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.1, 0.5, 0.15, 0.25]])
    soft = soft_targets(p_nV.log(), torch.tensor([3, 0]))
    assert soft.ids_Nk.tolist() == [[1, 3, 3], [1, 3, 0]]
    np.testing.assert_allclose(soft.weights_Nk, [[0.5, 0.25, 0], [0.5, 0.25, 1]], rtol=1e-6)
