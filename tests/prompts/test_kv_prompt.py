"""KV prompts as values: which base models they fit, and how they are blended and mixed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sordino.errors import BadInput, ConfigError, DoesNotFit, SoftPromptFileError
from sordino.prompts.blending import blend
from sordino.prompts.ensemble import ensemble_of
from sordino.prompts.fit import Stated, check_one_base, fit, stated_by
from sordino.prompts.kv_prompt import KVPrompt, KVShape
from sordino.prompts.mixture import Mixture, uniform
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.formats.kv_makers import SHAPE, kv_prompt
from tests.prompt_files import matrix

LLAMA = BaseRef("org/a", "llama", 8, 2, 320, fingerprint="a" * 64)


def test_a_model_of_the_same_sizes_fits() -> None:
    assert fit(LLAMA, stated_by(kv_prompt(base=LLAMA)), kv=SHAPE).kind == "exact"
    assert fit(replace(LLAMA, fingerprint="b" * 64), stated_by(kv_prompt(base=LLAMA)), kv=SHAPE).kind == "same family"
    assert fit(LLAMA, stated_by(kv_prompt()), kv=SHAPE).kind == "unknown"
    # PEFT's files do not say the width.
    assert fit(LLAMA, stated_by(kv_prompt(d_model=0)), kv=SHAPE).kind == "unknown"


@pytest.mark.parametrize(
    ("model", "kv", "words"),
    [
        (replace(LLAMA, d_model=9), SHAPE, "8 wide"),
        (replace(LLAMA, n_layers=3), None, "2 layers and org/a has 3"),
        (LLAMA, KVShape(2, 2, 2), "2 layers of 2 x 2"),
        (LLAMA, KVShape(2, 1, 4), "2 layers of 1 x 4"),
    ],
)
def test_other_sizes_never_load(model: BaseRef, kv: KVShape | None, words: str) -> None:
    found = fit(model, stated_by(kv_prompt()), kv=kv)
    assert (found.kind, found.forcible) == ("no", False)
    assert words in found.reason


def test_an_embedding_prompt_has_no_shape_to_compare() -> None:
    assert fit(LLAMA, Stated(Metadata(), 8), kv=KVShape(2, 7, 7)).kind == "unknown"


def test_prompts_of_different_shapes_are_not_for_one_base() -> None:
    other = kv_prompt(1, shape=KVShape(2, 2, 2))
    with pytest.raises(DoesNotFit, match=r"2 layers of 1 x 2.*2 layers of 2 x 2"):
        check_one_base([kv_prompt(), other], "combined", force=True)
    assert check_one_base([kv_prompt(base=LLAMA), SoftPrompt(matrix(), Metadata(base=LLAMA))], "combined") == []
    deeper = SoftPrompt(matrix(), Metadata(base=replace(LLAMA, n_layers=3)))
    with pytest.raises(DoesNotFit):
        check_one_base([kv_prompt(), deeper], "combined")


def test_a_blend_is_the_weighted_mean_of_all_numbers() -> None:
    one, other = kv_prompt(0, base=LLAMA), kv_prompt(1, base=LLAMA)
    made = blend([one, other], [3, 1], "linear", created="2026-01-01").prompt
    assert isinstance(made, KVPrompt)
    np.testing.assert_allclose(made.flat_PW, 0.75 * one.flat_PW + 0.25 * other.flat_PW, atol=1e-6)
    np.testing.assert_allclose(made.last_D, 0.75 * one.last_D + 0.25 * other.last_D, atol=1e-6)
    assert blend([one, other], [1, 0], "linear").prompt.content_hash == one.content_hash
    without = blend([one, kv_prompt(1, d_model=0)], [1, 1], "linear").prompt
    assert isinstance(without, KVPrompt)
    assert len(without.last_D) == 0


def test_blends_that_mean_nothing_are_refused_by_name() -> None:
    for how in ("spherical", "concatenate"):
        with pytest.raises(BadInput, match="KV prompts are blended linearly"):
            blend([kv_prompt(0), kv_prompt(1)], [1, 1], how)
    with pytest.raises(BadInput, match=r"different kinds.*KV prompt, embedding prompt"):
        blend([kv_prompt(0), SoftPrompt(matrix())], [1, 1], "linear")
    with pytest.raises(BadInput, match="one placement"):
        blend([kv_prompt(0), kv_prompt(1, placement="after_bos")], [1, 1], "linear")
    with pytest.raises(BadInput, match="different lengths"):
        blend([kv_prompt(0), kv_prompt(1, 4)], [1, 1], "linear")


def test_an_ensemble_takes_both_kinds() -> None:
    made, _ = ensemble_of({"a": kv_prompt(), "b": SoftPrompt(matrix())}, None, "logits", "both")
    assert [one.kind for one in made.components] == ["KV prompt", "embedding prompt"]
    assert made.d_model == 8
    with pytest.raises(ConfigError, match="cannot be a component"):
        ensemble_of({"a": made}, None, "logits", "both")


def test_a_component_need_not_say_its_width() -> None:
    assert Mixture((kv_prompt(d_model=0), SoftPrompt(matrix())), uniform(2)).d_model == 8
    assert Mixture((kv_prompt(d_model=0),), uniform(1)).d_model == 0
    with pytest.raises(BadInput, match="different widths"):
        Mixture((kv_prompt(d_model=9), SoftPrompt(matrix())), uniform(2))


def test_without_a_last_hidden_state_every_first_token_is_equally_likely() -> None:
    given = kv_prompt(d_model=0).prefix(LLAMA)
    np.testing.assert_array_equal(given.last_D, np.zeros(8, np.float32))


def test_the_hash_is_of_the_last_hidden_state_too() -> None:
    prompt = kv_prompt()
    others = [replace(prompt, last_D=prompt.last_D + 1), replace(prompt, last_D=prompt.last_D[:0])]
    assert len({one.content_hash for one in (prompt, *others)}) == 3
    # What the metadata says of a width is no part of it.
    assert kv_prompt(d_model=0, base=LLAMA).content_hash == kv_prompt(d_model=0).content_hash


def test_arrays_that_do_not_match_are_refused() -> None:
    for flat, shape in ((np.zeros((2, 7)), SHAPE), (np.zeros(8), SHAPE), (np.zeros((2, 8)), KVShape(4, 1, 2))):
        with pytest.raises(SoftPromptFileError, match="do not match"):
            KVPrompt(flat.astype(np.float32), shape, np.zeros(8, np.float32))
