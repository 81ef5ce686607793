"""On the bundled model: its hidden states tell kinds of texts apart, and weights follow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sordino.forward.gate_input import hidden_of_texts
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.training.config import TextPaths
from sordino.training.mixture.config import FitConfig
from sordino.training.mixture.fit import fit, prepare

KINDS = {
    "sums": "1 + 1 = 2; 2 + 3 = 5; 4 + 4 = 8; 6 + 1 = 7;",
    "tales": "Once upon a time there was a queen who had no",
}
ANIMALS = ("fox", "wolf", "goat", "raven", "hare", "bear", "owl", "toad")


def records() -> list[dict[str, str]]:
    sums = [
        {"prompt": f"{a} + {b} =", "completion": f" {a + b}; {b} + {b} = {2 * b}; {a} + 1 = {a + 1};"}
        for a in range(2, 7)
        for b in range(3, 7)
    ]
    tales = [
        {"prompt": f"The {first} met the {second},", "completion": f" and said: why are you so sad, my dear {second}?"}
        for at, first in enumerate(ANIMALS)
        for second in (ANIMALS[at - 1], ANIMALS[at - 3], ANIMALS[at - 5])
    ]
    return [*sums, *tales]


@pytest.mark.slow
def test_the_gate_knows_sums_from_tales(smollm2: BaseModel, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records())), encoding="utf-8")
    prompts = []
    for name, text in KINDS.items():
        matrix = smollm2.embed(torch.tensor(smollm2.encode(text))).float().numpy()
        prompts.append((name, SoftPrompt(matrix, Metadata(name=name, placement=smollm2.placement))))
    config = FitConfig()
    fitted = fit(smollm2, prompts, prepare(smollm2, TextPaths((tmp_path / "data.jsonl",)), config), config)
    assert 0.2 < fitted.weights.weights_K[0] < 0.8
    assert fitted.report.line("best").less_mixture.value > 0.05
    assert fitted.report.gate_won
    gate = fitted.mixture.gate
    assert gate is not None
    asked = [smollm2.encode("5 + 3 ="), smollm2.encode("The queen met the hare,")]
    sums, tale = (gate.weights(hidden_D.numpy()) for hidden_D in hidden_of_texts(smollm2, asked))
    assert sums[0] > 0.7
    assert tale[1] > 0.7
