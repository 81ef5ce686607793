"""Openings: teacher and student read the same, but for the long text; no opening is in two sets."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from sordino.errors import DataError
from sordino.training.distil.config import DistilConfig
from sordino.training.distil.openings import make_openings
from sordino.training.distil.source import LongText
from tests.training.distil.lessons import OPENINGS, WORDS, small_base, small_config

ADA = LongText(WORDS, "Ada", "Good evening.")


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_in_a_chat_the_text_is_the_system_message(family: str, tmp_path: Path) -> None:
    base = small_base(family)
    made = make_openings(base, LongText(WORDS), small_config(tmp_path))
    assert {one.text for one in made.openings} == set(OPENINGS)
    for one in made.openings:
        turn = {"role": "user", "content": one.text}
        system = {"role": "system", "content": WORDS}
        assert [*made.prefix, *one.behind] == base.encode_markup(base.chat_opening([system, turn]))
        assert list(one.alone) == base.encode_markup(base.chat_opening([turn]))
    assert WORDS in base.decode(made.prefix)
    assert made.end_id in base.stop_ids


def test_in_plain_text_it_is_a_heading(tmp_path: Path) -> None:
    base = small_base()
    made = make_openings(base, ADA, small_config(tmp_path, template="plain"))
    for one in made.openings:
        assert base.decode([*made.prefix, *one.behind]) == f"{WORDS}\n\n{one.text}"
        assert base.decode(one.alone) == one.text
    assert made.end_id == base.tokenizer.eos_token_id


def test_the_packaged_openings_suit_character_and_template() -> None:
    base = small_base()
    chats = make_openings(base, ADA, DistilConfig())
    assert len(chats.openings) > 80
    greeted = [one for one in chats.openings if "Good evening.<|im_end|>" in base.tokenizer.decode(one.behind)]
    assert 0.4 < len(greeted) / len(chats.openings) < 0.6
    spoken = [one.text for one in make_openings(base, ADA, DistilConfig(template="plain")).openings]
    assert any(text.startswith("Ada: Good evening.\nYou: ") and text.endswith("\nAda:") for text in spoken)
    asked = [one.text for one in make_openings(base, LongText(WORDS), DistilConfig(template="plain")).openings]
    assert sum(text.startswith("Question: ") for text in asked) == len(chats.openings)


def test_no_opening_is_in_two_sets_and_the_seed_deals_them_out() -> None:
    base = small_base()
    made = make_openings(base, LongText(WORDS), DistilConfig())
    sets = {part: {one.text for one in made.of(part)} for part in ("train", "validation", "heldout")}
    assert sum(map(len, sets.values())) == len(made.openings) == len(set.union(*sets.values()))
    assert len(sets["train"]) > 4 * len(sets["heldout"]) > 0
    other = make_openings(base, LongText(WORDS), DistilConfig(seed=1))
    assert {one.text for one in other.of("heldout")} != sets["heldout"]
    assert make_openings(base, LongText(WORDS), DistilConfig()) == made


@pytest.mark.parametrize(("text", "count"), [("one\n\ntwo\ntwo\n", 2), ("", 0), ("\n\n", 0)])
@pytest.mark.parametrize("template", ["chat", "plain"])
def test_too_few_are_refused(tmp_path: Path, text: str, count: int, template: Literal["chat", "plain"]) -> None:
    """None of them are too few, too: the packaged ones were not asked for."""
    few = tmp_path / "few.txt"
    few.write_text(text)
    with pytest.raises(DataError, match=f"at least 8 lines, got {count} that differ"):
        make_openings(small_base(), LongText(WORDS), DistilConfig(openings=str(few), template=template))
