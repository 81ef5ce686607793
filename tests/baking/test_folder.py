"""A baked folder in plain transformers: the tokens are the soft prompt, and are never written."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sordino import formats
from sordino.baking.bake import bake
from sordino.engine.config import Limits, Sampling
from sordino.engine.requests import Request
from sordino.errors import BadInput, ConfigError, DoesNotFit
from sordino.models import base_model
from sordino.models.base_model import BaseModel
from sordino.prompts.attention import PromptAttention
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.engine.test_real_model import TEXTS
from tests.engine.test_torch_runner import agreed, engine_of, run
from tests.tiny_models import CHATML, FAMILIES, tiny, tiny_gguf, tiny_tokenizer

TEXT = "the keeper wrote"


def saved(folder: Path, family: str, **overrides: Any) -> Path:
    bos = family == "gemma3"
    tiny(family, dtype=torch.float32, **overrides).save_pretrained(folder)
    tiny_tokenizer(bos=bos).save_pretrained(folder)
    return folder


def prompt(base: BaseModel, seed: int = 0, n: int = 4) -> SoftPrompt:
    matrix = np.random.default_rng(seed).normal(scale=base.embedding_rms, size=(n, base.d_model))
    return SoftPrompt(matrix.astype(np.float32), Metadata(base=base.ref, placement=base.placement))


def logits_behind(base: BaseModel, soft: SoftPrompt, text: str) -> torch.Tensor:
    """Plain concatenation in the base model."""
    embeds = base.embed(torch.tensor([base.encode(text)]))
    bos = base.embed(torch.tensor([base.bos_ids], dtype=torch.long))
    whole = torch.cat([bos, torch.tensor(soft.matrix)[None], embeds], dim=1)
    with torch.no_grad():
        return base.network(inputs_embeds=whole).logits[0]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_the_soft_prompt(family: str, tied: bool, tmp_path: Path) -> None:
    folder = saved(tmp_path / "base", family, tie_word_embeddings=tied)
    base = base_model.load(str(folder), device="cpu", dtype="float32")
    # More tokens than there are unused rows of the embeddings.
    soft, other = prompt(base, n=40), prompt(base, seed=1)
    made = bake(str(folder), {"voice": soft, "other": other}, tmp_path / "baked")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "baked")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "baked", dtype=torch.float32)
    assert network.config.get_text_config().tie_word_embeddings is False
    for name, one in (("voice", soft), ("other", other)):
        ids = tokenizer(made.texts[name] + TEXT, return_tensors="pt")["input_ids"]
        assert ids.shape[1] == len(base.bos_ids) + one.n_tokens + len(base.encode(TEXT))
        with torch.no_grad():
            logits = network(input_ids=ids).logits[0]
        expected = logits_behind(base, one, TEXT)
        torch.testing.assert_close(logits[:, : base.vocab_size][:, :290], expected[:, :290], rtol=1e-4, atol=1e-4)
    new = tokenizer.convert_tokens_to_ids([f"<|voice:{place}|>" for place in range(40)])
    head = network.get_output_embeddings().weight
    assert len({tuple(row.tolist()) for row in head[new]}) == 1, "rows of the head are copies of one"
    assert set(network.generation_config.suppress_tokens) >= set(new)


def test_every_text_begins_with_the_soft_prompt_if_asked(tmp_path: Path) -> None:
    for family in ("llama", "gemma3"):
        folder = saved(tmp_path / family, family)
        base = base_model.load(str(folder), device="cpu", dtype="float32")
        target = tmp_path / f"{family}-baked"
        made = bake(str(folder), {"voice": prompt(base)}, target, always=True)
        tokenizer = AutoTokenizer.from_pretrained(target)
        assert (
            tokenizer.decode(tokenizer(TEXT)["input_ids"]) == "<bos>" * len(base.bos_ids) + made.texts["voice"] + TEXT
        )
        chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        assert chat.count("<|voice:0|>") == 1


def test_a_baked_model_is_a_base_model_but_for_other_soft_prompts(tmp_path: Path) -> None:
    """Its chat template would write those of both, and tokens of one name would be those of the second."""
    folder = saved(tmp_path / "base", "llama")
    base = base_model.load(str(folder), device="cpu")
    soft = prompt(base)
    bake(str(folder), {"voice": soft.with_metadata(licence="CC0-1.0")}, tmp_path / "baked")
    again = base_model.load(str(tmp_path / "baked"), device="cpu")
    assert len(again.encode_markup("<|voice:0|>")) == 1
    for name in ("voice", "second"):
        with pytest.raises(BadInput, match="soft prompts as tokens already"):
            bake(str(tmp_path / "baked"), {name: soft}, tmp_path / "twice")
    # Without a template another may come on top, but none of the same name.
    settings = tmp_path / "baked" / "tokenizer_config.json"
    known = json.loads(settings.read_text())
    # Where all programs look for it, text-generation-inference too.
    assert "<|voice:0|>" in known.pop("chat_template")
    settings.write_text(json.dumps(known))
    with pytest.raises(BadInput, match="soft prompts as tokens already"):
        bake(str(tmp_path / "baked"), {"voice": soft}, tmp_path / "twice")
    bake(str(tmp_path / "baked"), {"second": soft}, tmp_path / "twice")
    card = (tmp_path / "baked" / "README.md").read_text()
    assert json.loads(card.split("base_model: ")[1].split("\n")[0]) == base.id
    assert "voice (4 virtual tokens, licence CC0-1.0)" in card


def test_each_of_several_chat_templates_writes_them(tmp_path: Path) -> None:
    folder = saved(tmp_path / "base", "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": CHATML, "tool_use": f"Tools. {CHATML}"}
    tokenizer.save_pretrained(folder)
    made = bake(str(folder), {"voice": prompt(base_model.load(str(folder), device="cpu"))}, tmp_path / "baked")
    baked = AutoTokenizer.from_pretrained(tmp_path / "baked")
    for name in ("default", "tool_use"):
        turns = [{"role": "user", "content": "Hi"}]
        text = baked.apply_chat_template(turns, chat_template=name, tokenize=False)
        assert text.startswith(made.texts["voice"])
        assert text.startswith("Tools. ", len(made.texts["voice"])) == (name == "tool_use")


def test_from_a_gguf_file(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "base.gguf")
    base = base_model.load(str(path), device="cpu")
    soft = prompt(base)
    made = bake(str(path), {"voice": soft}, tmp_path / "baked")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "baked")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "baked", dtype=torch.float32)
    ids = tokenizer(made.texts["voice"] + TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = network(input_ids=ids).logits[0]
    torch.testing.assert_close(logits[:, :290], logits_behind(base, soft, TEXT)[:, :290], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_plain_transformers_writes_what_we_do_with_the_soft_prompts(smollm2: BaseModel, tmp_path: Path) -> None:
    """Greedy, up to near-ties; and a baked model holds nothing."""
    with resources.as_file(resources.files("sordino").joinpath("data", "prompts")) as folder:
        prompts = {name: formats.read(folder / f"{name}.zip") for name in ("keeper", "port-dolor")}
    made = bake("smollm2", prompts, tmp_path / "baked")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "baked")
    network: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "baked", dtype=torch.float32)
    greedy = Sampling(max_tokens=24, temperature=0)
    asked = [(name, text) for name in prompts for text in TEXTS[:4]]
    requests = [
        Request(tuple(smollm2.encode(text)), prompts[name].with_metadata(attention=PromptAttention()), greedy)
        for name, text in asked
    ]
    ours = run(engine_of(smollm2, Limits(rows=8, queue=8), kv_bytes=1 << 30), requests)
    new = tokenizer.convert_tokens_to_ids([f"<|{name}:{place}|>" for name in prompts for place in range(20)])
    assert tokenizer.unk_token_id not in new
    equal, hot = [], []
    for (name, text), row in zip(asked, ours, strict=True):
        ids = tokenizer(made.texts[name] + text, return_tensors="pt")
        greedily = network.generate(
            **ids, max_new_tokens=24, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        logits_TV = torch.cat(greedily.logits).double()
        gaps = [float(top[0] - top[1]) for top in logits_TV.topk(2).values]
        theirs = greedily.sequences[0].tolist()[ids["input_ids"].shape[1] :]
        equal.append(agreed(row.ids, [token for token in theirs if token not in smollm2.stop_ids], gaps))
        hot += (logits_TV / 1.5).softmax(1)[:, new].sum(1).tolist()
    # Texts that part at a near tie are counted: a fault would part nearly all.
    assert equal.count(False) <= 1
    # Of 10,000 tokens at temperature 1.5 none is expected, though nothing suppresses them.
    expected = 10_000 * sum(hot) / len(hot)
    assert 0 < expected < 0.2


def test_what_cannot_be_done_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = saved(tmp_path / "base", "llama")
    base = base_model.load(str(folder), device="cpu")
    soft = prompt(base)
    with pytest.raises(ConfigError, match="is made from a"):
        bake(str(folder), {"voice": soft}, tmp_path / "x.gguf")
    path = tiny_gguf(tmp_path / "base.gguf")
    with pytest.raises(ConfigError, match="--always"):
        bake(str(path), {"voice": soft}, tmp_path / "x.gguf", always=True)
    wide = SoftPrompt(np.ones((2, 48), np.float32), Metadata())
    with pytest.raises(DoesNotFit):
        bake(str(folder), {"voice": wide}, tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("mine")
    with pytest.raises(BadInput, match="other files"):
        bake(str(folder), {"voice": soft}, tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "base.gguf", "full"]
