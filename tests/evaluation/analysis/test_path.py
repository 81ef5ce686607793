"""Losses along a way are those of each blend alone."""

from __future__ import annotations

import numpy as np
import pytest

from sordino.errors import BadInput, ConfigError
from sordino.evaluation.analysis.losses import losses_of, passage_of
from sordino.evaluation.analysis.path import path_between, shares_along, to_json
from sordino.evaluation.config import BlendConfig
from sordino.prompts.blending import blend
from sordino.prompts.soft_prompt import Metadata
from tests.evaluation.analysis.looked_at import PIECES, voice
from tests.prompts.kv_of import kv_of
from tests.tiny_models import tiny_base


@pytest.mark.parametrize("how", ["linear", "spherical"])
def test_every_point_is_the_blend_measured_alone(how: str) -> None:
    base = tiny_base("llama")
    texts = {"a": PIECES[:2], "b": PIECES[2:]}
    config = BlendConfig(how, points=3, limit=0, row_tokens=24, pass_tokens=500)
    first, second = voice(1), voice(2)
    seen = []
    path = path_between(
        base, first, second, texts, config, also=0.3, progress=lambda done, total: seen.append(done / total)
    )
    assert path.shares == (0.0, 0.3, 0.5, 1.0)
    for label, pieces in texts.items():
        passage = passage_of(base, pieces, row_tokens=24, limit=0)
        for share, loss in zip(path.shares, path.losses[label], strict=True):
            made = blend([first, second], [1 - share, share], how).prompt
            alone = losses_of(base, [made.matrix], Metadata(), passage, pass_tokens=500)
            assert loss == pytest.approx(float(alone[0]), abs=1e-9)
        nothing = losses_of(base, [first.matrix[:0]], Metadata(), passage, pass_tokens=500)
        assert path.without[label] == pytest.approx(float(nothing[0]), abs=1e-10)
    assert seen[-1] == 1
    assert seen == sorted(seen)
    assert to_json(path)["texts"][1]["nll"] == list(path.losses["b"])


def test_the_way_between_kv_prompts_has_the_ends_of_what_they_do_the_work_of() -> None:
    base, config = tiny_base("llama"), BlendConfig(points=3, limit=0, row_tokens=24, pass_tokens=500)
    vectors = [voice(1), voice(2)]
    ways = [
        path_between(base, *pair, {"a": PIECES}, config) for pair in (vectors, [kv_of(base, one) for one in vectors])
    ]
    first, second = (way.losses["a"] for way in ways)
    assert second[0] == pytest.approx(first[0], abs=1e-5)
    assert second[-1] == pytest.approx(first[-1], abs=1e-5)
    assert ways[0].without == ways[1].without
    with pytest.raises(BadInput, match="linearly alone"):
        path_between(base, *(kv_of(base, one) for one in vectors), {"a": PIECES}, BlendConfig("spherical"))
    with pytest.raises(BadInput, match="different kinds"):
        path_between(base, vectors[0], kv_of(base, vectors[1]), {"a": PIECES}, config)


def test_shares() -> None:
    np.testing.assert_allclose(shares_along(11, None), np.arange(11) / 10)
    assert len(shares_along(11, 0.7)) == 11
    assert shares_along(2, 0.25) == (0.0, 0.25, 1.0)


def test_what_has_no_way_is_refused() -> None:
    base = tiny_base("llama")
    texts = {"a": PIECES}
    with pytest.raises(ConfigError, match="no path between"):
        path_between(base, voice(1), voice(2), texts, BlendConfig("concatenate", points=3, pass_tokens=500))
    with pytest.raises(ConfigError, match="--points"):
        path_between(base, voice(1), voice(2), texts, BlendConfig(points=1, pass_tokens=500))
    with pytest.raises(BadInput, match="different lengths"):
        path_between(base, voice(1), voice(2, tokens=3), texts, BlendConfig(points=3, pass_tokens=500))
