"""What vLLM is given for a request, and what is made of its answers: without vLLM, whose own end is in tests/programs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sordino.engine.config import Sampling
from sordino.engine.requests import Chunk, Request
from sordino.engine.vllm.rows import Output, Row, engine_input
from sordino.engine.vllm.sampling import KEY, beyond, parameters, unpacked
from sordino.errors import DoesNotFit
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.engine.test_sampling import KOBOLD_ORDER
from tests.tiny_models import tiny_base

BASE = tiny_base("gemma3")
GREEDY = Sampling(max_tokens=9, temperature=0)
ENDS = frozenset((1, 4))


def prompt(placement: Any = "after_bos", *, fill: float | None = None, tokens: int = 3, wider: int = 0) -> SoftPrompt:
    shape = (tokens, BASE.d_model + wider)
    matrix = np.random.default_rng(1).standard_normal(shape) if fill is None else np.full(shape, fill)
    return SoftPrompt(matrix.astype(np.float32), Metadata(placement=placement))


@pytest.mark.parametrize("placement", ["after_bos", "start"])
def test_a_row_is_ids_with_the_prompts_vectors_between_them(placement: str) -> None:
    soft, bos = prompt(placement), list(BASE.bos_ids)
    assert bos
    text = [7, 8, 9] if placement == "after_bos" else [*bos, 7, 8, 9]
    found = engine_input(BASE, Request(tuple(text), soft, GREEDY), torch.bfloat16)
    before = len(bos) if placement == "after_bos" else 0
    assert found["is_token_ids"] == [True] * before + [False] * 3 + [True] * len(text)
    kept = [token for token, is_id in zip(found["prompt_token_ids"], found["is_token_ids"], strict=True) if is_id]
    assert kept == [*bos[:before], *text]
    embeds_TD = found["prompt_embeds"]
    assert embeds_TD.dtype == torch.bfloat16
    assert torch.equal(embeds_TD[before : before + 3], torch.from_numpy(soft.matrix.copy()).bfloat16())
    # What vLLM does not read may not differ either: its cache would take it for another row.
    assert not embeds_TD[[*range(before), *range(before + 3, len(embeds_TD))]].any()
    # A repetition penalty finds no word there that the row has not.
    assert set(found["prompt_token_ids"]) == set(kept)


def test_a_row_without_a_prompt_is_ids() -> None:
    found = engine_input(BASE, Request((7, 8), None, GREEDY), torch.float32)
    assert found == {"type": "token", "prompt_token_ids": [*BASE.bos_ids, 7, 8]}


def test_no_two_prompts_share_a_key_of_the_cache() -> None:
    """Rows whose ids and vectors are the same, and which differ in what stands where."""
    rows = [
        prompt("start", fill=0.0, tokens=2),
        prompt("start", fill=0.0, tokens=3),
        prompt("after_bos", fill=0.0, tokens=3),
        prompt("after_bos", tokens=3),
    ]
    salts = [engine_input(BASE, Request((7, 7, 7, 7), soft, GREEDY), torch.float32)["cache_salt"] for soft in rows]
    assert len(set(salts)) == len(rows)
    again = rows[0].with_metadata(name="another name")
    assert engine_input(BASE, Request((8,), again, GREEDY), torch.float32)["cache_salt"] == salts[0]


def test_a_prompt_of_another_width_is_refused() -> None:
    with pytest.raises(DoesNotFit):
        engine_input(BASE, Request((7,), prompt(wider=1), GREEDY), torch.float32)


def test_the_settings_of_openai_are_vllms_own() -> None:
    sampling = Sampling(
        max_tokens=5,
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        min_tokens=2,
        logit_bias=((7, 3.0),),
        logprobs=2,
    )
    assert beyond(sampling) == ""
    found = parameters(Request((5,), None, sampling, seed=11), ENDS)
    assert "extra_args" not in found
    assert found["seed"] == 11
    assert found["logit_bias"] == {7: 3.0}
    assert found["stop_token_ids"] == [1, 4]
    names = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "min_tokens", "logprobs")
    assert {name: found[name] for name in names} == {name: getattr(sampling, name) for name in names}


def test_an_end_that_is_ignored_or_forbidden() -> None:
    ignored = parameters(Request((5,), None, replace(GREEDY, end="ignore")), ENDS)
    assert (ignored["stop_token_ids"], ignored["min_tokens"]) == ([], 0)
    forbidden = parameters(Request((5,), None, replace(GREEDY, end="forbid")), ENDS)
    assert (forbidden["stop_token_ids"], forbidden["min_tokens"]) == ([1, 4], GREEDY.max_tokens)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"typical": 0.9}, "typical"),
        ({"top_a": 0.1}, "top_a"),
        ({"tfs": 0.9}, "tfs"),
        ({"repetition_penalty": 1.1, "repetition_range": 64}, "repetition_range"),
        ({"repetition_penalty": 1.1, "presence_penalty": 1.0}, "repetition_penalty"),
        ({"dry_multiplier": 0.8}, "dry_multiplier"),
        ({"xtc_probability": 0.5}, "xtc_probability"),
        ({"dynatemp_range": 0.5}, "dynatemp_range"),
        ({"smoothing_factor": 0.3}, "smoothing_factor"),
        ({"banned": ((5, 6),)}, "banned"),
        ({"temperature": 0.005}, "temperature"),
        ({"temperature": 3.0}, "temperature"),
        ({"logit_bias": ((5, -1e9),)}, "logit_bias"),
        ({"logit_bias": ((5, 1.0), (5, 1.0))}, "logit_bias"),
        ({"min_p": 0.05, "top_p": 0.9}, "min_p"),
        ({"min_tokens": 3, "end": "ignore"}, "min_tokens"),
        ({"order": KOBOLD_ORDER, "temperature": 0.7, "top_p": 0.9}, "order"),
    ],
)
def test_what_vllm_lacks_is_drawn_by_our_sampler(changes: dict[str, Any], named: str) -> None:
    sampling = replace(Sampling(max_tokens=5, temperature=0.7, top_p=1.0), **changes)
    assert beyond(sampling) == named
    request = Request((5, 6), prompt(), sampling, seed=3)
    found = parameters(request, ENDS)
    assert found["temperature"] == 0
    assert found["stop_token_ids"] == ([] if sampling.end == "ignore" else [1, 4])
    assert unpacked(found["extra_args"][KEY]) == (sampling, (5, 6), 3, ENDS)


def test_the_order_counts_where_it_changes_something() -> None:
    assert beyond(Sampling(temperature=0.7, top_p=1.0, order=KOBOLD_ORDER)) == ""
    assert beyond(Sampling(temperature=1.0, top_p=0.9, order=KOBOLD_ORDER)) == ""
    assert beyond(Sampling(temperature=0.0, top_p=0.9, order=KOBOLD_ORDER)) == ""


def read(row: Row, *outputs: tuple[list[int], str | None]) -> tuple[str, list[int]]:
    chunks: list[Chunk] = []
    for ids, finish in outputs:
        chunks += row.read(Output(tuple(ids), None, finish, 0))  # type: ignore[arg-type]
    return "".join(chunk.text for chunk in chunks), [drawn.token for chunk in chunks for drawn in chunk.drawn]


def test_an_answer_ends_once_at_a_token_a_stop_string_or_its_length() -> None:
    ids = BASE.encode(" the keeper wrote")
    end = min(BASE.stop_ids)
    request = Request(tuple(BASE.encode("the sea")), prompt(), GREEDY)
    row = Row(BASE, request)
    assert read(row, (ids, None), ([end], "stop")) == (" the keeper wrote", ids)
    assert row.end is not None
    assert (row.end.reason, row.end.n_new, row.end.n_prompt) == ("stop", len(ids), len(BASE.bos_ids) + 3 + 2)
    assert row.end.ended_by is not None
    assert row.end.ended_by.token == end
    row = Row(BASE, request)
    assert read(row, (ids, "length"))[0] == " the keeper wrote"
    assert row.end is not None
    assert row.end.reason == "length"
    # vLLM runs on behind a stop string until it hears of it.
    row = Row(BASE, replace(request, sampling=replace(GREEDY, stop=("keeper",))))
    assert read(row, (ids, None)) == (" the ", ids[: len(BASE.encode(" the keeper"))])
    assert row.end is not None
    assert row.end.reason == "stop"
    row = Row(BASE, replace(request, sampling=replace(GREEDY, end="ignore")))
    read(row, ([end, *ids], None))
    assert row.end is None


def test_log_probabilities_are_those_of_the_likeliest_by_rank() -> None:
    def found(logprob: float, rank: int) -> SimpleNamespace:
        return SimpleNamespace(logprob=logprob, rank=rank)

    one = SimpleNamespace(
        token_ids=[9], finish_reason=None, logprobs=[{9: found(-3.0, 5), 5: found(-0.5, 1), 6: found(-1.0, 2)}]
    )
    output = Output.of(SimpleNamespace(outputs=[one], num_cached_tokens=None))
    row = Row(BASE, Request((7,), None, replace(GREEDY, logprobs=2)))
    (chunk,) = row.read(output)
    assert chunk.drawn[0].logprob == -3.0
    assert chunk.drawn[0].top == ((5, -0.5), (6, -1.0))
