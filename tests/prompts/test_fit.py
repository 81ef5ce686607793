"""Whether several soft prompts are for one base model: one rule for blends, ensembles and comparisons."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sordino.errors import BadInput, DoesNotFit
from sordino.prompts.fit import check_one_base, common_base
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.prompt_files import matrix

LLAMA = BaseRef("org/a", "llama", 8, 3, 320, fingerprint="a" * 64)
TUNED = replace(LLAMA, id="org/b", fingerprint="b" * 64)


def prompt(base: BaseRef, *, name: str = "", width: int = 8) -> SoftPrompt:
    return SoftPrompt(matrix(1, 3, width), Metadata(name=name, base=base))


@pytest.mark.parametrize(
    ("one", "other", "note"),
    [
        (LLAMA, LLAMA, ""),
        (LLAMA, TUNED, "other weights"),
        (LLAMA, BaseRef(), "do not say"),
        (BaseRef(), LLAMA, "do not say"),
        (BaseRef(id="x"), BaseRef(id="y"), "do not say"),
        (replace(LLAMA, family="gemma3_text"), replace(LLAMA, family="gemma3"), ""),
    ],
)
def test_prompts_that_may_be_for_one_base(one: BaseRef, other: BaseRef, note: str) -> None:
    notes = check_one_base([prompt(one), prompt(other)], "combined")
    assert bool(notes) == bool(note)
    assert note in "".join(notes)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LLAMA, replace(TUNED, n_layers=4)),
        (LLAMA, replace(TUNED, vocab_size=321)),
        (LLAMA, replace(TUNED, family="gptj")),
        (BaseRef(fingerprint="a" * 64), BaseRef(fingerprint="b" * 64)),
    ],
)
def test_prompts_of_different_bases_are_refused_in_either_order_unless_forced(one: BaseRef, other: BaseRef) -> None:
    for pair in ([prompt(one), prompt(other)], [prompt(other), prompt(one)]):
        with pytest.raises(DoesNotFit, match="different base models cannot be combined"):
            check_one_base(pair, "combined")
        assert "another base model" in check_one_base(pair, "combined", force=True)[0]


def test_every_pair_is_compared_and_other_widths_are_never_forced() -> None:
    unknown, gptj = BaseRef(), BaseRef(family="gptj")
    with pytest.raises(DoesNotFit, match=r"org/a 8 wide 3 layers vocabulary 320.*gptj 8 wide"):
        check_one_base([prompt(unknown), prompt(LLAMA), prompt(gptj)], "compared")
    with pytest.raises(DoesNotFit, match=r"8 wide.*6 wide"):
        check_one_base([prompt(unknown), prompt(unknown, width=6)], "compared", force=True)
    with pytest.raises(BadInput):
        check_one_base([], "compared")


def test_the_base_of_several_is_what_they_state_alike() -> None:
    assert common_base([LLAMA, TUNED]) == replace(LLAMA, id="", fingerprint="")
    assert common_base([LLAMA, BaseRef()]) == BaseRef(family="llama", d_model=8, n_layers=3, vocab_size=320)
