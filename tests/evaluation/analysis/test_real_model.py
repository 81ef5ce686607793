"""On SmolLM2 and the packaged soft prompts: what must be so of prompts that work."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from sordino import formats
from sordino.evaluation.analysis.inspection import depth_of, surface_of
from sordino.evaluation.analysis.losses import losses_of, passage_of
from sordino.evaluation.analysis.path import path_between
from sordino.evaluation.config import BlendConfig, InspectConfig
from sordino.evaluation.off_domain import own_text
from sordino.texts.reading import read_pieces

pytestmark = pytest.mark.slow
DATA = Path(str(resources.files("sordino"))) / "data"


def test_leaving_out_costs_and_attention_is_paid(smollm2) -> None:
    prompt = formats.read(DATA / "prompts" / "keeper.zip")
    text = own_text(prompt)
    assert "lighthouse keeper" in text[0]
    depth = depth_of(smollm2, prompt, text, InspectConfig(limit=256))
    assert depth.importance.loss < depth.importance.without - 0.1
    assert np.mean(depth.importance.costs) > 0
    # In one batch as alone: float32, so to its rounding.
    passage = passage_of(smollm2, text[1], row_tokens=128, limit=256)
    for at in (0, 19):
        short = np.delete(prompt.matrix, at, axis=0)
        (alone,) = losses_of(smollm2, [short], prompt.metadata, passage, pass_tokens=4096)
        assert depth.importance.loss + depth.importance.costs[at] == pytest.approx(float(alone), abs=1e-4)
    shares_L = depth.attention.by_layer_L
    assert len(shares_L) == 30
    assert ((shares_L > 0) & (shares_L + depth.attention.bos_L <= 1 + 1e-5)).all()
    # The prompt stands where the sink is.
    assert shares_L.max() > 0.3
    surface = surface_of(smollm2, prompt)
    assert surface.vocabulary[0] < surface.vocabulary[1] < surface.vocabulary[2]


def test_each_end_of_a_way_is_best_on_its_own_text(smollm2) -> None:
    first, second = (formats.read(DATA / "prompts" / f"{name}.zip") for name in ("keeper", "port-dolor"))
    texts = {name: read_pieces([DATA / name / "heldout"]).pieces for name in ("keeper", "noir")}
    path = path_between(smollm2, first, second, texts, BlendConfig(points=3, limit=400))
    assert path.losses["keeper"][0] < path.losses["keeper"][-1]
    assert path.losses["noir"][-1] < path.losses["noir"][0]
