"""PEFT's folders: PEFT loads ours, we read PEFT's, and other adapters are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from sordino import formats
from sordino.errors import BadInput
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.formats.makers import FULL, prompt, saved, tensor
from tests.formats.refusals import both_refuse, refusal
from tests.prompt_files import matrix

# PEFT asks transformers under a name that is to be replaced.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=64, n_embd=8, n_layer=2, n_head=2)).eval()


def folder(path: Path, config: dict[str, Any] | None = None, **tensors: torch.Tensor) -> Path:
    path.mkdir()
    good = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4, "token_dim": 8}
    (path / "adapter_config.json").write_text(json.dumps(good | (config or {})))
    save_file(tensors or {"prompt_embeddings": tensor()}, path / "adapter_model.safetensors")
    return path


@pytest.mark.parametrize("metadata", [FULL, Metadata()])
def test_peft_loads_what_we_write(tmp_path: Path, metadata: Metadata) -> None:
    from peft import PeftConfig, PeftModel

    formats.write(prompt(metadata), tmp_path / "adapter", to="peft")
    model = PeftModel.from_pretrained(tiny_gpt2(), tmp_path / "adapter").eval()
    assert torch.equal(model.get_prompt(batch_size=1)[0], tensor())
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        theirs = model(input_ids=ids).logits
        base = tiny_gpt2()
        embeds = torch.cat([tensor(), base.get_input_embeddings()(ids[0])])[None]
        assert torch.allclose(theirs, base(inputs_embeds=embeds).logits, atol=1e-5)
    config = PeftConfig.from_pretrained(tmp_path / "adapter")
    assert config.base_model_name_or_path == (metadata.base.id or None)
    assert config.num_virtual_tokens == 4


def test_we_read_what_peft_writes(tmp_path: Path) -> None:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    base = tiny_gpt2()
    base.name_or_path = "org/tiny"
    model = get_peft_model(base, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=5))
    model.save_pretrained(tmp_path / "voice", save_embedding_layers=False)
    found = formats.read(tmp_path / "voice")
    assert formats.detect(tmp_path / "voice") == "peft"
    assert np.array_equal(found.matrix, model.get_prompt(batch_size=1)[0].detach().numpy())
    assert found.metadata == Metadata("voice", base=BaseRef("org/tiny"), placement="start")
    assert (formats.peek(tmp_path / "voice").n_tokens, formats.peek(tmp_path / "voice").d_model) == (5, 8)


def test_all_metadata_goes_through_the_folder(tmp_path: Path) -> None:
    formats.write(prompt(), tmp_path / "adapter", to="peft")
    assert formats.read(tmp_path / "adapter").metadata == FULL
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "sordino.json",
    ]


def test_metadata_of_another_matrix_is_noticed(tmp_path: Path) -> None:
    formats.write(prompt(), tmp_path / "adapter", to="peft")
    save_file({"prompt_embeddings": tensor(1)}, tmp_path / "adapter" / "adapter_model.safetensors")
    assert "the matrix was changed" in refusal(tmp_path / "adapter")
    (tmp_path / "adapter" / "sordino.json").unlink()
    assert np.array_equal(formats.read(tmp_path / "adapter").matrix, matrix(1))


@pytest.mark.parametrize("as_zip", [True, False])
def test_reads_the_older_bin(tmp_path: Path, *, as_zip: bool) -> None:
    path = folder(tmp_path / "v")
    (path / "adapter_model.safetensors").unlink()
    (path / "adapter_model.bin").write_bytes(saved({"prompt_embeddings": tensor()}, as_zip=as_zip))
    assert np.array_equal(formats.read(path).matrix, matrix())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "LORA"}, "got LORA"),
        ({"peft_type": "PREFIX_TUNING"}, "num_layers"),
        ({"peft_type": None}, "not a soft prompt"),
        ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
        ({"task_type": "SEQ_2_SEQ_LM", "peft_type": "PREFIX_TUNING"}, "SEQ_2_SEQ_LM"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules"),
        ({"num_virtual_tokens": 5}, "num_virtual_tokens"),
        ({"token_dim": 9}, "token_dim"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path"),
    ],
)
def test_refuses_other_adapters_by_name(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    both_refuse(folder(tmp_path / "v", config), words)


def test_accepts_a_configuration_that_says_little(tmp_path: Path) -> None:
    little = dict.fromkeys(("task_type", "num_virtual_tokens", "token_dim", "base_model_name_or_path"))
    assert formats.read(folder(tmp_path / "v", little)).n_tokens == 4


def test_refuses_what_was_trained_along(tmp_path: Path) -> None:
    path = folder(tmp_path / "v", prompt_embeddings=tensor(), **{"base_model.lm_head.weight": tensor(1)})
    both_refuse(path, "more than a soft prompt", "lm_head")


def test_refuses_incomplete_folders(tmp_path: Path) -> None:
    path = folder(tmp_path / "v")
    with pytest.raises(BadInput, match="holds one soft prompt"):
        formats.read(path, index=1)
    (path / "adapter_model.safetensors").unlink()
    both_refuse(path, "no adapter_model.safetensors")
    (path / "adapter_config.json").write_text("[]")
    both_refuse(path, "not a JSON object")
    (path / "adapter_config.json").write_bytes(b" " * (2 << 20))
    both_refuse(path, "too large")


def test_a_placement_that_peft_does_not_know_needs_force(tmp_path: Path) -> None:
    known = Metadata(name="v", placement="after_bos")
    with pytest.raises(BadInput, match=r"--placement start.*--force"):
        formats.write(prompt(known), tmp_path / "v", to="peft")
    assert list(tmp_path.iterdir()) == []
    (warning,) = formats.write(prompt(known), tmp_path / "v", to="peft", force=True)
    assert "before BOS" in warning
    assert formats.read(tmp_path / "v").metadata.placement == "after_bos"


def test_replacing_a_folder_keeps_documents(tmp_path: Path) -> None:
    formats.write(prompt(), tmp_path / "v", to="peft")
    with pytest.raises(BadInput, match="--force"):
        formats.write(prompt(), tmp_path / "v", to="peft")
    formats.write(SoftPrompt(matrix(1)), tmp_path / "v", to="peft", force=True)
    assert np.array_equal(formats.read(tmp_path / "v").matrix, matrix(1))
    (tmp_path / "v" / "README.md").write_text("Notes.")
    with pytest.raises(BadInput, match="other files"):
        formats.write(prompt(), tmp_path / "v", to="peft", force=True)
    assert np.array_equal(formats.read(tmp_path / "v").matrix, matrix(1))
