"""PEFT is the referee: a soft prompt exported to PEFT gives PEFT's logits here, and PEFT's own prompts give theirs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from sordino.errors import BadInput
from sordino.formats import read, read_any, write
from sordino.forward.nll import head_of
from sordino.forward.placement import encode_prompts, leading_ids
from sordino.forward.prefix import forward_rows
from sordino.forward.rows import rows_from_examples
from sordino.models.base_model import BaseModel
from sordino.prompts.kv_prompt import KVPrompt, SinglePrompt
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.tiny_models import tiny_base

TEXT = "the keeper wrote of the sea and the ship"


def _our_logits(base: BaseModel, prompt: SinglePrompt, text: str) -> torch.Tensor:
    ids = [*leading_ids(base, prompt.metadata.placement), *base.encode(text)]
    with torch.no_grad():
        hidden = forward_rows(base.network, encode_prompts(base, [prompt]), rows_from_examples([[ids]], [0]))
        return head_of(base.network).logits(hidden[0])


def _peft_logits(model, base: BaseModel, prompt: SoftPrompt, text: str) -> torch.Tensor:
    ids = torch.tensor([[*leading_ids(base, prompt.metadata.placement), *base.encode(text)]])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, prompt.n_tokens :]


def _prompt(base: BaseModel, tokens: int = 7, placement: str = "start") -> SoftPrompt:
    matrix = np.random.default_rng(0).normal(size=(tokens, base.d_model), scale=base.embedding_rms).astype(np.float32)
    return SoftPrompt(
        matrix, Metadata(name="v", placement=placement, base=BaseRef(id="someone/model", d_model=base.d_model))
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3"])
def test_an_exported_prompt_gives_the_same_logits_in_peft(tmp_path, family):
    from peft import PeftModel

    base = tiny_base(family, dtype=torch.float32)
    prompt = _prompt(base)
    write(prompt, tmp_path / "adapter", to="peft")
    model = PeftModel.from_pretrained(copy.deepcopy(base.network), tmp_path / "adapter").eval()
    ours, theirs = _our_logits(base, prompt, TEXT), _peft_logits(model, base, prompt, TEXT)
    assert float((ours - theirs).abs().max()) <= 1e-4


def test_a_prompt_that_peft_saved_gives_the_same_logits_here(tmp_path):
    from peft import PromptTuningConfig, TaskType, get_peft_model

    base = tiny_base("llama", dtype=torch.float32)
    model = get_peft_model(
        copy.deepcopy(base.network), PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=5)
    ).eval()
    model.save_pretrained(tmp_path / "saved")
    prompt = read(tmp_path / "saved")
    assert prompt.metadata.placement == "start"
    assert prompt.n_tokens == 5
    ours, theirs = _our_logits(base, prompt, TEXT), _peft_logits(model, base, prompt, TEXT)
    assert float((ours - theirs).abs().max()) <= 1e-4


def test_a_prompt_behind_bos_is_not_exported_in_silence(tmp_path):
    base = tiny_base("gemma3", dtype=torch.float32)
    prompt = _prompt(base, placement="after_bos")
    with pytest.raises(BadInput, match="--force"):
        write(prompt, tmp_path / "adapter", to="peft")
    assert not (tmp_path / "adapter").exists()
    assert write(prompt, tmp_path / "adapter", to="peft", force=True)
    assert any("BOS" in line for line in write(prompt, tmp_path / "v.zip", to="kobold"))


def test_the_real_model_agrees_with_peft(tmp_path, smollm2):
    from peft import PeftModel

    prompt = _prompt(smollm2, 20)
    write(prompt, tmp_path / "adapter", to="peft")
    ours = _our_logits(smollm2, prompt, "The lamp was lit at four and the wind was in the north.")
    model = PeftModel.from_pretrained(smollm2.network, tmp_path / "adapter").eval()
    theirs = _peft_logits(model, smollm2, prompt, "The lamp was lit at four and the wind was in the north.")
    smollm2.network.requires_grad_(False)
    assert float((ours - theirs).abs().max()) <= 1e-4


# KV prompts ---------------------------------------------------------------------------------------------------------


def _kv_prompt(base: BaseModel, tokens: int = 5) -> KVPrompt:
    shape = base.kv_shape
    assert shape is not None
    random = np.random.default_rng(3)
    flat_PW = random.normal(size=(tokens, shape.width)).astype(np.float32)
    return KVPrompt(flat_PW, shape, random.normal(size=base.d_model).astype(np.float32), Metadata(name="v"))


def _peft_behind(model, base: BaseModel, text: str) -> torch.Tensor:
    ids = torch.tensor([[*base.bos_ids, *base.encode(text)]])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("to", ["peft", "cartridge"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3"])
def test_an_exported_kv_prompt_gives_the_same_logits_in_peft(tmp_path, family, to, bos):
    """BOS, where there is one, belongs to the text, and the text goes on at the position after the prompt."""
    from peft import PeftModel

    base = tiny_base(family, dtype=torch.float32, bos=bos)
    prompt = _kv_prompt(base)
    write(prompt, tmp_path / "adapter", to=to)
    model = PeftModel.from_pretrained(copy.deepcopy(base.network), tmp_path / "adapter").eval()
    ours, theirs = _our_logits(base, prompt, TEXT), _peft_behind(model, base, TEXT)
    assert float((ours - theirs).abs().max()) <= 1e-4
    back = read_any(tmp_path / "adapter")
    assert (back.content_hash, back.metadata) == (prompt.content_hash, prompt.metadata)


@pytest.mark.parametrize("kind", ["prefix", "projected prefix", "cartridge"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_kv_prompt_that_peft_saved_gives_the_same_logits_here(tmp_path, family, kind):
    from peft import CartridgeConfig, PeftModel, PrefixTuningConfig, TaskType, get_peft_model

    base = tiny_base(family, dtype=torch.float32)
    given = {"task_type": TaskType.CAUSAL_LM, "num_virtual_tokens": 5}
    config = {
        "prefix": lambda: PrefixTuningConfig(**given),
        "projected prefix": lambda: PrefixTuningConfig(**given, prefix_projection=True, encoder_hidden_size=6),
        "cartridge": lambda: CartridgeConfig(**given, num_frozen_tokens=2),
    }[kind]()
    torch.manual_seed(1)
    get_peft_model(copy.deepcopy(base.network), config).save_pretrained(tmp_path / "saved")
    model = PeftModel.from_pretrained(copy.deepcopy(base.network), tmp_path / "saved").eval()
    prompt = read_any(tmp_path / "saved")
    assert (prompt.kind, prompt.shape, prompt.n_tokens) == ("KV prompt", base.kv_shape, 5)
    assert prompt.metadata.placement == "start"
    assert base.fit(prompt).kind == "unknown"
    ours, theirs = _our_logits(base, prompt, TEXT), _peft_behind(model, base, TEXT)
    assert float((ours - theirs).abs().max()) <= 1e-4


def test_a_kv_prompt_behind_bos_is_refused(tmp_path):
    prompt = _kv_prompt(tiny_base("llama", bos=True)).with_metadata(placement="after_bos")
    with pytest.raises(BadInput, match="rotated for the positions after BOS"):
        write(prompt, tmp_path / "adapter", to="peft", force=True)
