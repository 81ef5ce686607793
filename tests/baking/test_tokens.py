"""Soft prompts as tokens: their names, what is refused, and the chat template that writes them."""

from __future__ import annotations

import numpy as np
import pytest
from jinja2 import Environment

from sordino.baking.tokens import BakedPrompt, check_placement, not_kept, to_bake, with_tokens
from sordino.errors import BadInput, DoesNotFit
from sordino.models.base_model import BaseModel
from sordino.prompts.attention import PromptAttention
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.prompts.kv_of import kv_of
from tests.tiny_models import CHATML, tiny_base

TURNS = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base("gemma3")


def prompt(seed: int = 0, n: int = 3, **metadata: object) -> SoftPrompt:
    fields = {"placement": "after_bos", **metadata}
    return SoftPrompt(np.random.default_rng(seed).normal(size=(n, 32)).astype(np.float32), Metadata(**fields))  # type: ignore[arg-type]


def baked(*names: str) -> list[BakedPrompt]:
    return [BakedPrompt(name, prompt(n=2)) for name in names]


def shown(template: str, **variables: object) -> str:
    return Environment().from_string(template).render(messages=TURNS, bos_token="<bos>", **variables)


def test_a_soft_prompt_is_a_row_of_tokens() -> None:
    assert baked("my.voice-2")[0].text == "<|my.voice-2:0|><|my.voice-2:1|>"


@pytest.mark.parametrize("name", ["", "a b", "it's", "a" * 65, "<|x|>", "наш"])
def test_a_name_that_would_break_the_template_or_the_tokens(name: str) -> None:
    with pytest.raises(BadInput, match="a name for tokens"):
        to_bake({name: prompt()})


def test_a_kv_prompt_has_no_tokens(base: BaseModel) -> None:
    with pytest.raises(BadInput, match="KV prompt"):
        to_bake({"voice": kv_of(base, prompt())})


def test_a_soft_prompt_before_bos(base: BaseModel) -> None:
    with pytest.raises(DoesNotFit, match="before BOS"):
        check_placement(base, to_bake({"voice": prompt(placement="start")}))


def test_attention_that_is_not_kept_is_said() -> None:
    held = BakedPrompt("held", prompt(attention=PromptAttention(hold=64)))
    (line,) = not_kept([held, *baked("plain")])
    assert line.startswith("held asks for hold 64")


def test_a_name_that_is_none_of_them_is_an_error_and_no_silence() -> None:
    """`soft_prompt: "keper"` would otherwise be answered without any."""

    def refuse(reason: str) -> None:
        raise ValueError(reason)

    template = with_tokens(CHATML, baked("a", "b"), tiny_base("llama"))
    with pytest.raises(ValueError, match="soft_prompt is none of: a, b"):
        shown(template, soft_prompt="c", raise_exception=refuse)


def test_the_template_writes_the_first_by_itself() -> None:
    template = with_tokens(CHATML, baked("a", "b"), tiny_base("llama"))
    assert shown(template) == "<|a:0|><|a:1|><|im_start|>user\nHello<|im_end|>\n"
    assert shown(template, soft_prompt="b").startswith("<|b:0|><|b:1|><|im_start|>")
    assert shown(template, soft_prompt="a").startswith("<|a:0|>")
    assert shown(template, soft_prompt="") == shown(CHATML)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}{{ messages[0].content }}", "<bos><|a:0|><|a:1|>Hello"),
        ("{%- set x = bos_token + messages[0].content -%}{{- x -}}", "<bos><|a:0|><|a:1|>Hello"),
        # Where the template writes no BOS, the tokenizer does.
        ("{{- messages[0].content }}", "<|a:0|><|a:1|>Hello"),
        ("{{ bos_token if written is defined else '' }}{{ messages[0].content }}", "<|a:0|><|a:1|>Hello"),
        ("{{ raise_exception('no') if messages[0].content == 'Hello' and not bos_token }}Hello", "<|a:0|><|a:1|>Hello"),
    ],
)
def test_behind_a_bos_that_the_template_writes(template: str, expected: str, base: BaseModel) -> None:
    assert shown(with_tokens(template, baked("a"), base)) == expected
