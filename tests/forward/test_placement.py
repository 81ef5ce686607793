"""Placements through the same checks, and one that no architecture has through training and generation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sordino.engine.detokenizer import HALF
from sordino.engine.generate import TextRequest, complete
from sordino.engine.sampling import Sampling
from sordino.forward import placement
from sordino.forward.placement import PLACEMENTS, most_positions, prefix_length
from sordino.models.base_model import BaseModel
from sordino.models.description import DescribedModel
from sordino.prompts.soft_prompt import PLACEMENTS as NAMES
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.training.events import Finished, Validation
from sordino.training.loop import Run, train
from tests.engine.test_generate import ids_by_transformers
from tests.forward.placement_conformance import check
from tests.prompts.prompt_conformance import embedding_prompt
from tests.tiny_models import FAMILIES, tiny_base
from tests.training.runs import CONFIG, small_base, small_set, start_of


@dataclass(frozen=True)
class BetweenMarks:
    """A mark before and after the prompt, and a third one that every text begins with."""

    before: int = 7
    after: int = 9
    leading: int = 11

    def prefix_embeds(self, base: BaseModel, matrix_PD: Tensor) -> Tensor:
        before_1D, after_1D = base.embed(torch.tensor([[self.before], [self.after]])).float()
        return torch.cat([before_1D, matrix_PD, after_1D])

    def leading_ids(self, base: DescribedModel) -> tuple[int, ...]:
        return (self.leading,)

    def prefix_length(self, base: DescribedModel, n_tokens: int) -> int:
        return n_tokens + 2


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> BetweenMarks:
    """The placement that files call "start"."""
    monkeypatch.setattr(placement, "PLACEMENTS", {**PLACEMENTS, "start": BetweenMarks()})
    return BetweenMarks()


def test_every_name_of_a_file_is_placed() -> None:
    assert sorted(PLACEMENTS) == sorted(NAMES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", [*NAMES, "marks"])
def test_placements_conform(family: str, bos: bool, name: str) -> None:
    check(tiny_base(family, bos=bos), BetweenMarks() if name == "marks" else PLACEMENTS[name])


@pytest.mark.parametrize("bos", [False, True])
def test_lengths_of_prompts(bos: bool) -> None:
    base = tiny_base("llama", bos=bos)
    prompt = embedding_prompt(base, 5)
    assert [prefix_length(base, one) for one in (None, prompt, prompt.with_metadata(placement="after_bos"))] == [
        int(bos),
        5,
        5 + bos,
    ]
    assert [most_positions(base, count) for count in (0, 5)] == [int(bos), 5 + bos]


def test_another_placement_trains(marks: BetweenMarks, tmp_path: Path) -> None:
    base = small_base()
    run = Run("", small_set(base), replace(CONFIG, placement="start", steps=40), tmp_path, start_of(base))
    events = list(train(base, run))
    losses = [event.loss for event in events if isinstance(event, Validation)]
    assert min(losses) < losses[0] - 0.2
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_placement_writes_what_transformers_writes(marks: BetweenMarks, family: str) -> None:
    base = tiny_base(family)
    prompts = [SoftPrompt(embedding_prompt(base, 3, seed).matrix, Metadata(placement="start")) for seed in (1, 2)]
    requests = [TextRequest("the lamp", prompt, 1) for prompt in prompts]
    for request, text in zip(requests, complete(base, requests, Sampling(max_tokens=10, temperature=0)), strict=True):
        assert text.rstrip(HALF) == base.decode(ids_by_transformers(base, request, 10)).rstrip(HALF)
