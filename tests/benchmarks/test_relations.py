"""Relations: templates cut at their object, ranks worked out one by one, what is left out and why."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.relations import (
    Fact,
    ReportLine,
    Template,
    View,
    known_facts,
    majority_ranks,
    mixed,
    object_candidates,
    rank_of,
    ranks,
    read_facts,
    read_templates,
    relation_lines,
    usable_templates,
    view_nlls,
    vocabulary_candidates,
)
from sordino.errors import DataError
from sordino.evaluation.conditions import no_prompt, soft_prompt
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.parity.plain import plain_embeds, plain_logits, plain_nll
from tests.prompt_files import matrix
from tests.tiny_models import tiny_base

FACTS = [
    Fact("Poe", "the sea", "f:1"),
    Fact("Keats", "lamp", "f:2"),
    Fact("Shelley", "the ship", "f:3"),
    Fact("Byron", "keeper", "f:4"),
    Fact("Clare", "lamp", "f:5"),
]
TEMPLATES = [
    Template("[X] was born in [Y] .", 0.5),
    Template("The place of [X] is [Y]", 0.2),
    Template("[X] , from [Y]", 0.3),
]


def jsonl(path: Path, records: list[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_template_is_cut_in_front_of_its_object() -> None:
    assert Template("[X] was born in [Y] .").before("Poe") == "Poe was born in"
    # A subject that looks like a slot is a subject.
    assert Template("The place of [X] is [Y]").before("[Y]ork") == "The place of [Y]ork is"


def test_templates_whose_object_is_not_last_are_left_out_and_said() -> None:
    kept, left_out = usable_templates([*TEMPLATES, Template("[Y] is where [X] was born ."), Template("[X] ([Y])")])
    assert kept == TEMPLATES
    assert "left to right" in left_out[0]
    assert "no space" in left_out[1]
    assert usable_templates([*TEMPLATES, TEMPLATES[0]]) == (TEMPLATES, ["given before"])
    with pytest.raises(DataError, match="finite sum"):
        usable_templates([Template(f"[X] {n} [Y]", 1e308) for n in range(2)])
    with pytest.raises(DataError, match="no template is usable"):
        usable_templates([Template("[Y] is of [X]")])


def test_ranks_are_those_of_every_candidate_scored_alone() -> None:
    base = tiny_base("llama", bos=True)
    candidates = object_candidates(base, FACTS)
    assert not candidates.left_out
    prompts = [SoftPrompt(matrix(seed, 4, 32), Metadata(placement="after_bos")) for seed in (1, 2)]
    views = [View(TEMPLATES[0], prompts[0]), View(TEMPLATES[1], prompts[1])]
    lines = [
        ReportLine("single", (View(TEMPLATES[0]),)),
        ReportLine("ensemble", tuple(View(t) for t in TEMPLATES), tuple(t.weight for t in TEMPLATES)),
        ReportLine("mixture", tuple(views), (1.0, 3.0)),
    ]
    got = ranks(base, FACTS, lines, candidates)
    for n, fact in enumerate(FACTS):
        for s, line in enumerate(lines):
            scores = {}
            for obj in candidates.index:
                shares = []
                for view, weight in zip(line.views, line.weights, strict=True):
                    front = soft_prompt(base, "x", view.prompt) if view.prompt else no_prompt(base)
                    text, label = base.encode(view.template.before(fact.sub)), base.encode(" " + obj)
                    flags = [False] * len(text) + [True] * len(label)
                    nll = float(plain_nll(base.network, plain_embeds(base, front), [*text, *label], flags).sum())
                    shares.append(weight * math.exp(-nll))
                scores[obj] = sum(shares)
            expected = 1 + sum(score > scores[fact.obj] for score in scores.values())
            assert got[n, s] == expected, (fact, line.label)


def test_the_nll_of_each_view_is_that_of_its_object_alone() -> None:
    base = tiny_base("llama", bos=True)
    candidates = object_candidates(base, FACTS)
    views = [View(template) for template in TEMPLATES]
    got = view_nlls(base, FACTS, views, candidates)
    assert got.shape == (5, 3)
    front = plain_embeds(base, no_prompt(base))
    for n, fact in enumerate(FACTS):
        for w, view in enumerate(views):
            text, label = base.encode(view.template.before(fact.sub)), base.encode(" " + fact.obj)
            flags = [False] * len(text) + [True] * len(label)
            assert got[n, w] == pytest.approx(
                float(plain_nll(base.network, front, [*text, *label], flags).sum()), abs=1e-9
            )


def test_over_the_vocabulary_objects_of_several_tokens_are_left_out() -> None:
    base = tiny_base("llama", bos=True)
    facts = [Fact("Poe", "lamp", "f:1"), Fact("Keats", "keeper", "f:2"), Fact("Shelley", "the sea", "f:3")]
    candidates = vocabulary_candidates(base, facts)
    assert candidates.left_out == {"the sea": "it is several tokens"}
    kept = known_facts(facts, candidates)
    assert [fact.obj for fact in kept] == ["lamp", "keeper"]
    got = ranks(base, kept, [ReportLine("single", (View(TEMPLATES[0]),))], candidates)
    for n, fact in enumerate(kept):
        logits = plain_logits(
            base.network, plain_embeds(base, no_prompt(base)), base.encode(TEMPLATES[0].before(fact.sub))
        )[-1]
        (token,) = base.encode(" " + fact.obj)
        assert got[n, 0] == 1 + int((logits > logits[token]).sum())


def test_an_object_that_another_opens_keeps_its_place_and_the_longer_is_left_out() -> None:
    base = tiny_base("llama")
    facts = [Fact("a", "the sea", "f:1"), Fact("b", "the sea ship", "f:2"), Fact("c", "lamp", "f:3")]
    candidates = object_candidates(base, facts)
    assert list(candidates.index) == ["lamp", "the sea"]
    assert "begin with another" in candidates.left_out["the sea ship"]
    assert [fact.obj for fact in known_facts(facts, candidates)] == ["the sea", "lamp"]


def test_the_majority_ranks_by_frequency_in_training() -> None:
    base = tiny_base("llama")
    candidates = object_candidates(base, FACTS)
    got = majority_ranks(FACTS, FACTS, candidates)
    assert [int(rank) for fact, rank in zip(FACTS, got, strict=True) if fact.obj == "lamp"] == [1, 1]
    # The others occur once each, and keep the order of the alphabet.
    assert {fact.obj: int(rank) for fact, rank in zip(FACTS, got, strict=True)} == {
        "lamp": 1, "keeper": 2, "the sea": 3, "the ship": 4
    }  # fmt: skip


def test_measures_by_hand() -> None:
    (line,) = relation_lines(["a"], np.array([[1], [2], [11], [10]]))
    assert line.p1.value == 0.25
    assert line.p10.value == 0.75
    assert line.mrr.value == pytest.approx((1 + 1 / 2 + 1 / 11 + 1 / 10) / 4)
    assert line.p1.interval is None
    low, high = relation_lines(["a"], np.array([[1], [2]] * 20))[0].p1.interval or (1, 0)
    assert 0.3 < low < 0.5 < high < 0.7


def test_weights_need_not_sum_to_one_but_not_all_be_zero() -> None:
    logp = np.log(np.array([[[0.2, 0.8], [0.6, 0.4]]]))
    np.testing.assert_allclose(np.exp(mixed(logp, (1.0, 3.0))), [[0.5, 0.5]])
    np.testing.assert_allclose(np.exp(mixed(logp, (0.0, 2.0))), [[0.6, 0.4]])
    with pytest.raises(DataError, match="zero"):
        mixed(logp, (0.0, 0.0))


def test_of_equals_the_earlier_leads() -> None:
    assert rank_of(np.zeros((3, 3)), np.array([0, 1, 2])).tolist() == [1, 2, 3]


def test_files_are_read_and_bad_ones_refused(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "f.jsonl", [{"sub": " Poe", "obj": "Boston"}, {"sub_label": "Keats", "obj_label": "London"}]
    )
    assert read_facts(path) == [Fact("Poe", "Boston", "f.jsonl:1"), Fact("Keats", "London", "f.jsonl:2")]
    path = jsonl(tmp_path / "t.jsonl", [{"template": "[X] is [Y] .", "weight": 2}, {"template": "[X] : [Y]"}])
    assert read_templates(path) == [Template("[X] is [Y] .", 2.0), Template("[X] : [Y]", 1.0)]
    for records, message in (
        ([{"sub": "Poe"}], "no fact"),
        ([["Poe", "Boston"]], "not an object"),
        ([], "no facts"),
    ):
        with pytest.raises(DataError, match=message):
            read_facts(jsonl(tmp_path / "bad.jsonl", records))  # type: ignore[arg-type]
    for records, message in (
        ([{"template": "[X] was born"}], "no template"),
        ([{"template": "[X] [X] [Y]"}], "no template"),
        ([{"template": "[X] is [Y]", "weight": -1}], "no weight"),
        ([{"template": "[X] is [Y]", "weight": True}], "no weight"),
        ([], "no templates"),
    ):
        with pytest.raises(DataError, match=message):
            read_templates(jsonl(tmp_path / "bad.jsonl", records))  # type: ignore[arg-type]
    (tmp_path / "bad.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not JSON"):
        read_facts(tmp_path / "bad.jsonl")


def test_tokens_of_objects_have_their_space() -> None:
    base = tiny_base("llama")
    candidates = object_candidates(base, FACTS)
    assert candidates.tree.ids[candidates.index["lamp"]] == tuple(base.encode(" lamp"))
    assert torch.tensor(candidates.tree.ids[candidates.index["the sea"]]).tolist() == base.encode(" the sea")


def test_templates_that_all_weigh_nothing_are_refused_before_anything_is_trained() -> None:
    with pytest.raises(DataError, match="weights of usable templates are zero"):
        usable_templates([Template("[X] is in [Y]", 0.0), Template("[Y] has [X]", 1.0)])
