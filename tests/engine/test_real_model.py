"""SmolLM2 in a crowded, changing batch, each row after another soft prompt, against transformers' generate row by row."""

from __future__ import annotations

from importlib import resources

import pytest

from sordino import formats
from sordino.engine.attach import attach
from sordino.engine.config import Limits, Sampling
from sordino.engine.detokenizer import HALF
from sordino.engine.generate import TextRequest, complete
from sordino.engine.requests import Request
from sordino.models.base_model import BaseModel
from sordino.prompts.attention import PromptAttention
from tests.engine.test_torch_runner import agreed, by_transformers, engine_of, run

TEXTS = (
    "The stranger knocked at the door, and",
    "On Tuesday my sister wrote to say that",
    "There was nothing for dinner but",
    "The doctor looked at me for a while and said",
    "In the morning",
    "The rain had not stopped since Monday, and the street outside the office was a river of paper cups and wet leaves. I",
)


@pytest.mark.slow
def test_smollm2_in_a_crowd_equals_transformers_one_by_one(smollm2: BaseModel) -> None:
    packaged = resources.files("sordino").joinpath("data", "prompts")
    with resources.as_file(packaged) as folder:
        prompts = [None, *(formats.read(path) for path in sorted(folder.glob("*.zip")))]
    greedy = Sampling(max_tokens=24, temperature=0)
    requests = [
        Request(tuple(smollm2.encode(text)), prompts[(place + turn) % len(prompts)], greedy)
        for turn in range(2)
        for place, text in enumerate(TEXTS)
    ]
    said = run(engine_of(smollm2, Limits(rows=5, queue=20, tokens=40, chunk=16), kv_bytes=1 << 30), requests)
    equal = [agreed(row.ids, *by_transformers(smollm2, request)) for row, request in zip(said, requests, strict=True)]
    # Rows that part at a near tie are counted: a fault would part nearly all.
    assert equal.count(False) <= 2


@pytest.mark.slow
def test_transformers_writes_what_smollm2_does_behind_an_attached_prompt(smollm2: BaseModel) -> None:
    packaged = resources.files("sordino").joinpath("data", "prompts")
    with resources.as_file(packaged) as folder:
        # transformers cannot hold it.
        prompt = formats.read(min(folder.glob("*.zip"))).with_metadata(attention=PromptAttention())
    attached = attach(smollm2.network, smollm2.tokenizer, prompt)
    expected = complete(smollm2, [TextRequest(text, prompt) for text in TEXTS], Sampling(max_tokens=24, temperature=0))
    ids = smollm2.network.generate(**attached(TEXTS), max_new_tokens=24, do_sample=False)
    equal = [text == ours.rstrip(HALF) for text, ours in zip(attached.decode(ids), expected, strict=True)]
    assert equal.count(False) <= 1
