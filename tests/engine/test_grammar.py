"""Text that matches a JSON schema: which words may come, and that nothing else about sampling changes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.engine.config import EngineOptions
from sordino.engine.engine import Engine
from sordino.engine.grammar import Grammars
from sordino.engine.requests import End, Request
from sordino.engine.runners.build import torch_runner
from sordino.engine.sampling import Sampling, sample
from sordino.engine.seen_tokens import SeenTokens
from sordino.errors import ConfigError, MissingExtra
from sordino.models.base_model import BaseModel
from sordino.prompts.mixture import Mixture
from tests.engine.driving import collected, finished
from tests.server.running import voice
from tests.tiny_models import tiny_base

jsonschema_rs = pytest.importorskip("jsonschema_rs")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["sea", "lamp", "log"]}, "minItems": 1, "maxItems": 3},
        "kept": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
    "required": ["name", "age", "tags", "kept"],
    "additionalProperties": False,
}
SCHEMAS: list[Mapping[str, Any]] = [
    PERSON,
    {"enum": ["yes", "no", 7]},
    {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"},
    {
        "$defs": {
            "leaf": {
                "type": "object",
                "properties": {"of": {"enum": ["tree", "bush", "sea"]}},
                "required": ["of"],
                "additionalProperties": False,
            }
        },
        "type": "array",
        "items": {"$ref": "#/$defs/leaf"},
        "minItems": 2,
        "maxItems": 2,
    },
]


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    return tiny_base(request.param, dtype=torch.float32)


def engine_of(base: BaseModel) -> Engine:
    return Engine(torch_runner(base, EngineOptions(rows=4, kv_memory=64)))


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_text_matches_its_schema_with_a_prompt_without_and_in_a_mixture(
    base: BaseModel, schema: Mapping[str, Any]
) -> None:
    keeper, clerk = voice(base, 1, name="keeper"), voice(base, 2, name="clerk")
    grammar, engine = Grammars(base).of_schema(schema), engine_of(base)
    asked = {}
    for seed in range(6):
        for soft in (None, keeper, Mixture((keeper, clerk), np.array([0.5, 0.5]))):
            sampling = Sampling(max_tokens=200, temperature=1.5 if seed else 0, top_p=1.0, repetition_penalty=1.2)
            asked[engine.submit(Request((5, 6, 7), soft, sampling, seed, grammar=grammar))] = seed
    found = collected(finished(engine))
    valid = jsonschema_rs.validator_for(dict(schema))
    for number in asked:
        text, reason = found[number]
        assert reason == "stop", text
        assert valid.is_valid(json.loads(text)), text
    assert len({text for text, _ in found.values()}) > 1


def test_a_text_that_is_cut_begins_one_that_matches(base: BaseModel) -> None:
    engine = engine_of(base)
    sampling = Sampling(max_tokens=9, temperature=1.0, logprobs=2)
    number = engine.submit(Request((5,), None, sampling, 3, grammar=Grammars(base).of_schema(PERSON)))
    events = finished(engine)
    assert collected(events)[number][0][:10] in ('{"name": "', '{"name": ')
    assert events[-1][1] == End("length", 1 + len(base.bos_ids), 9)


def test_an_end_is_no_way_out_and_a_grammar_ends_what_has_no_end(base: BaseModel) -> None:
    """min_tokens, a forbidden end and an ignored one do not break the schema, nor does a bias against all it allows."""
    grammar = Grammars(base).of_schema({"enum": ["yes", "no"]})
    for more in ({"min_tokens": 50}, {"end": "forbid"}, {"end": "ignore"}, {"banned": ((9,), (11,))}):
        engine = engine_of(base)
        number = engine.submit(Request((5,), None, Sampling(max_tokens=60, **more), 1, grammar=grammar))  # type: ignore[arg-type]
        assert collected(finished(engine))[number] in (('"yes"', "stop"), ('"no"', "stop"))


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    allowed=st.lists(st.booleans(), min_size=12, max_size=12).filter(any),
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.7, 1.0]),
        top_k=st.sampled_from([0, 3]),
        top_p=st.sampled_from([0.8, 1.0]),
        min_p=st.sampled_from([0.0, 0.1]),
        typical=st.sampled_from([0.7, 1.0]),
        tfs=st.sampled_from([0.8, 1.0]),
        top_a=st.sampled_from([0.0, 0.2]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        presence_penalty=st.sampled_from([0.0, 0.5]),
        xtc_probability=st.sampled_from([0.0, 0.5]),
        dynatemp_range=st.sampled_from([0.0, 0.3]),
        smoothing_factor=st.sampled_from([0.0, 0.2]),
    ),
)
def test_sampling_under_a_mask_is_sampling_among_the_allowed_words(
    seed: int, allowed: list[bool], sampling: Sampling
) -> None:
    allowed_V = np.array(allowed)
    places = np.flatnonzero(allowed_V)
    logits_V = np.random.default_rng(seed).normal(size=12).astype(np.float32) * 3
    own = [int(word) for word in np.random.default_rng(seed + 1).choice(places, 3)]

    def drawn(logits: Any, ids: list[int], mask: Any) -> int:
        seen, random = SeenTokens(ids[:2]), torch.Generator().manual_seed(seed)
        seen.push(ids[2])
        return sample(logits, seen, sampling, random, allowed_V=mask).token

    alone = drawn(logits_V[places], [int(np.flatnonzero(places == word)[0]) for word in own], None)
    assert drawn(logits_V.copy(), own, allowed_V) == places[alone]


def test_log_probabilities_are_the_models_own() -> None:
    logits_V = np.array([3.0, 1.0, 2.0, 0.0], np.float32)
    allowed_V = np.array([False, True, False, True])
    sampling, random = Sampling(logprobs=2, temperature=1.0), torch.Generator().manual_seed(0)
    drawn = sample(logits_V, SeenTokens(()), sampling, random, allowed_V=allowed_V)
    expected = torch.log_softmax(torch.from_numpy(logits_V).double(), 0)
    assert drawn.logprob == pytest.approx(float(expected[drawn.token]))
    assert [word for word, _ in drawn.top] == [0, 2]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strin"},
        {"type": "object", "properties": 3},
        {"$ref": "#/nowhere"},
        {"$ref": "https://example.org/schema.json"},
        {"type": "string", "pattern": "("},
        {"not": {"type": "string"}},
        False,
        {"type": "integer", "minimum": 5, "maximum": 2},
        {"description": "x" * 70_000},
    ],
)
def test_what_cannot_be_followed_is_refused_with_the_reason(base: BaseModel, schema: Any) -> None:
    with pytest.raises(ConfigError, match="response_format"):
        Grammars(base).of_schema(schema)


def test_a_deep_or_wide_schema_costs_little_or_is_refused(base: BaseModel) -> None:
    deep: Any = {"type": "integer"}
    for _ in range(400):
        deep = {"type": "array", "items": deep}
    wide = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(1500)}}
    for schema in (deep, wide, {"type": "string", "pattern": "(a|b|c){5000}(d|e){5000}"}, {"maxLength": 10**9}):
        with suppress(ConfigError):
            Grammars(base).of_schema(schema).begin().allowed()


def test_without_the_package_its_installation_is_named(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtra, match=r"pip install 'sordino\[schema\]'"):
        Grammars(base).of_schema({})


def test_rows_of_one_grammar_do_not_share_their_state(base: BaseModel) -> None:
    grammar = Grammars(base).of_schema({"enum": ["yes", "no"]})
    first, second = grammar.begin(), grammar.begin()
    before = second.allowed().copy()
    first.push(int(np.flatnonzero(first.allowed())[0]))
    assert (second.allowed() == before).all()
    assert replace(Request((1,), grammar=grammar), seed=2).grammar is grammar
