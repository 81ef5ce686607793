"""All of it together, and its pictures."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from sordino.evaluation.analysis.inspection import (
    TARGETS,
    Inspection,
    affordable,
    depth_of,
    findings,
    surface_of,
    to_json,
)
from sordino.evaluation.analysis.path import BlendPath
from sordino.evaluation.analysis.pictures import inside_figure, path_figure, pruning_figure
from sordino.evaluation.analysis.pruning import Stage
from sordino.evaluation.config import InspectConfig
from sordino.evaluation.pictures import rendered
from sordino.prompts.similarity import similarity_map
from tests.evaluation.analysis.looked_at import PIECES, voice
from tests.tiny_models import tiny_base

STRANGE = "a $\\frac{1}{2}$ 灯\n台 \x1b[31m"


def looked(seed: int, *, deep: bool = True, label: str = "fog") -> Inspection:
    base, prompt = tiny_base("llama"), voice(seed, tokens=3 + seed)
    depth = (
        depth_of(base, prompt, ("a text", PIECES), InspectConfig(limit=0, row_tokens=24, pass_tokens=500))
        if deep
        else None
    )
    return Inspection(label, prompt, surface_of(base, prompt), depth)


def test_json_and_sentences_say_the_same() -> None:
    inside = looked(1)
    said = json.loads(json.dumps(to_json(inside)))
    assert inside.depth is not None
    assert said["importance"]["left_out"] == list(inside.depth.importance.costs)
    assert len(said["tokens"]) == 4
    assert set(said["tokens"][0]) == {"nearest_by_cosine", "nearest_by_distance", "norm", "norm_percentile"}
    assert said["tokens"][0]["norm"] == pytest.approx(float(np.linalg.norm(inside.prompt.matrix[0])))
    assert np.shape(said["attention"]["by_layer_and_token"]) == (3, 4)
    np.testing.assert_allclose(np.sum(said["attention"]["by_layer_and_token"], axis=1), said["attention"]["by_layer"])
    lines = findings(inside.depth)
    most = int(np.argmax(inside.depth.importance.costs)) + 1
    assert f"left out: {most} (" in lines[1]
    assert "of 3" in lines[-1]
    assert "importance" not in to_json(looked(1, deep=False))


def test_the_budget_is_shared_by_all_prompts() -> None:
    assert affordable(98, 24_000) == 240 - 98
    assert affordable(20, 24_000) == TARGETS[1]
    assert affordable(500, 24_000) == 0


@pytest.mark.parametrize("budget", [4_800, 24_000])
def test_no_prompt_however_long_is_run_beyond_the_budget(budget: int) -> None:
    for tokens in range(1, 2048):
        targets = affordable(tokens, budget)
        assert targets == 0 or (targets >= TARGETS[0] and (tokens + 2) * (tokens + targets) <= budget)


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_pictures_of_strange_names_are_drawn(ending: str) -> None:
    insides = [looked(1, label=STRANGE), looked(2)]
    alike = similarity_map([inside.prompt for inside in insides], "pooled")
    first = rendered(inside_figure(insides, alike), ending)
    if ending == ".svg":
        ElementTree.fromstring(first)
    else:
        assert first.startswith(b"\x89PNG")
        assert first == rendered(inside_figure(insides, alike), ending)
    rendered(inside_figure([looked(1, deep=False)]), ending)
    stages = [Stage((0, 1), 1.0, 2.0), Stage((0,), 1.1, 2.2)]
    rendered(pruning_figure(stages, stages[1]), ending)
    rendered(pruning_figure([Stage((0,), 1.0)], Stage((0,), 1.0)), ending)
    way = BlendPath("linear", (0.0, 1.0), {STRANGE: (1.0, 2.0)}, {STRANGE: 3.0}, {STRANGE: 9})
    rendered(path_figure(way, STRANGE, "$", 0.3), ending)
