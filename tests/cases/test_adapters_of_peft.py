"""Adapters that people saved with PEFT: P-tuning, CPT, multitask prompt tuning, and files that hold more than a soft prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from sordino import formats
from sordino.errors import SoftPromptFileError
from tests.formats.makers import saved
from tests.formats.refusals import both_refuse, refusal
from tests.prompt_files import matrix

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
N_TOKENS, WIDTH, TASKS = 5, 8, 3
IDS = torch.tensor([[3, 1, 4, 1, 5]])


def base_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=64, n_embd=WIDTH, n_layer=2, n_head=2)).eval()


def config_of(kind: str) -> Any:
    import peft

    size = {"task_type": "CAUSAL_LM", "num_virtual_tokens": N_TOKENS}
    match kind:
        case "p_tuning_mlp":
            return peft.PromptEncoderConfig(**size, encoder_hidden_size=6)
        case "p_tuning_lstm":
            return peft.PromptEncoderConfig(**size, encoder_hidden_size=6, encoder_reparameterization_type="LSTM")
        case "cpt":
            ids = list(range(N_TOKENS))
            return peft.CPTConfig(
                task_type="CAUSAL_LM", cpt_token_ids=ids, cpt_mask=[1] * N_TOKENS, cpt_tokens_type_mask=[1, 1, 2, 2, 3]
            )
        case "multitask":
            return peft.MultitaskPromptTuningConfig(**size, num_tasks=TASKS, num_ranks=2)
        case "prefix":
            return peft.PrefixTuningConfig(**size)
        case _:
            return peft.PromptTuningConfig(**size)


def adapter(path: Path, kind: str, *, resized: bool = False) -> Path:
    """What PEFT saves after some training, which is made up."""
    from peft import get_peft_model

    base = base_model()
    if resized:
        base.resize_token_embeddings(51)
    model = get_peft_model(base, config_of(kind))
    with torch.no_grad():
        for weight in model.prompt_encoder.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(path, save_embedding_layers=resized)
    return path


def logits_of_peft(path: Path, **more: Any) -> torch.Tensor:
    from peft import PeftModel

    with torch.no_grad():
        return PeftModel.from_pretrained(base_model(), path).eval()(input_ids=IDS, **more).logits[0, -1]


def logits_behind(matrix_PD: np.ndarray) -> torch.Tensor:
    model = base_model()
    embeds = torch.cat([torch.tensor(matrix_PD), model.get_input_embeddings()(IDS[0])])[None]
    with torch.no_grad():
        return model(inputs_embeds=embeds).logits[0, -1]


@pytest.mark.parametrize("kind", ["prompt_tuning", "p_tuning_mlp", "p_tuning_lstm", "cpt"])
def test_finished_vectors_are_read_and_say_what_peft_says(tmp_path: Path, kind: str) -> None:
    """People had P-tuning and CPT adapters, and were told that these were no soft prompts."""
    path = adapter(tmp_path / kind, kind)
    found = formats.read(path)
    assert formats.detect(path) == "peft"
    assert (formats.peek(path).n_tokens, formats.peek(path).d_model) == (N_TOKENS, WIDTH)
    assert found.metadata.placement == "start"
    assert torch.allclose(logits_behind(found.matrix), logits_of_peft(path), atol=1e-5)
    # The file in it, and a copy of it alone.
    shutil.copy(path / "adapter_model.safetensors", tmp_path / "alone.safetensors")
    for file in (path / "adapter_model.safetensors", tmp_path / "alone.safetensors"):
        assert np.array_equal(formats.read(file).matrix, found.matrix)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("torch_file", [False, True])
def test_each_task_of_a_multitask_prompt_is_chosen_by_index(tmp_path: Path, *, alone: bool, torch_file: bool) -> None:
    """Somebody's adapter for three tasks was read as the matrix that the tasks share, which PEFT uses for none of them."""
    path = adapter(tmp_path / "tasks", "multitask")
    expected = [logits_of_peft(path, task_ids=torch.tensor([task])) for task in range(TASKS)]
    if torch_file:
        tensors = load_file(path / "adapter_model.safetensors")
        (path / "adapter_model.safetensors").unlink()
        (path / "adapter_model.bin").write_bytes(saved(tensors))
    if alone:
        (file,) = path.glob("adapter_model.*")
        path = file.rename(tmp_path / "voice")
    both_refuse(path, "several soft prompts", "0-2", "--index")
    for task in range(TASKS):
        found = formats.read(path, index=task)
        assert torch.allclose(logits_behind(found.matrix), expected[task], atol=1e-5), task
    assert "0 to 2" in refusal(path, index=TASKS)


def test_tasks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    good = load_file(adapter(tmp_path / "tasks", "multitask") / "adapter_model.safetensors")
    path = tmp_path / "v.safetensors"
    cols, rows = good["prefix_task_cols"], good["prefix_task_rows"]
    for changes in (
        {"prefix_task_cols": cols[:2].clone()},
        {"prefix_task_rows": rows[:, :1].clone()},
        {"prefix_task_cols": cols[:, :3].clone()},
        {"prefix_task_cols": cols[0].clone()},
        {"prefix_task_rows": rows[:, :, :4].clone()},
    ):
        save_file(good | changes, path)
        assert "do not agree" in refusal(path, index=0)
    large = {"prefix_task_cols": torch.full_like(cols, 1e38), "prefix_task_rows": torch.full_like(rows, 1e38)}
    save_file(good | large, path)
    assert "not finite" in refusal(path, index=0)
    del good["prefix_task_rows"]
    save_file(good, path)
    both_refuse(path, "more than a soft prompt")


def test_prefix_tuning_is_a_kv_prompt_also_as_the_file_beside_its_configuration(tmp_path: Path) -> None:
    """The bare file of a prefix adapter was taken for a soft prompt of a wide model."""
    path = adapter(tmp_path / "prefix", "prefix")
    for file in (path, path / "adapter_model.safetensors"):
        assert formats.peek(file).kind == "KV prompt"
        assert formats.read_any(file).kind == "KV prompt"
        with pytest.raises(SoftPromptFileError, match="a KV prompt, where an embedding prompt is needed"):
            formats.read(file)


@pytest.mark.parametrize("alone", [False, True])
def test_after_a_resized_vocabulary_the_prompt_is_read_with_a_warning(tmp_path: Path, *, alone: bool) -> None:
    """Somebody added a pad token before training; PEFT then saves the embeddings too, and the adapter was refused."""
    path = adapter(tmp_path / "voice", "prompt_tuning", resized=True)
    tensors = load_file(path / "adapter_model.safetensors")
    assert len(tensors) > 1
    if alone:
        path = (path / "adapter_model.safetensors").rename(tmp_path / "v.safetensors")
    warnings: list[str] = []
    found = formats.read(path, warn=warnings.append)
    assert np.array_equal(found.matrix, tensors["prompt_embeddings"].numpy())
    assert len(warnings) == 1
    assert "vocabulary" in warnings[0]
    assert "\n" not in warnings[0]
    assert formats.peek(path).n_tokens == N_TOKENS
    formats.read(adapter(tmp_path / "plain", "prompt_tuning"), warn=warnings.append)
    assert len(warnings) == 1


@pytest.mark.parametrize(
    "beside",
    [
        {"base_model.model.score.weight": (2, WIDTH)},
        {"base_model.lm_head.weight": (51, WIDTH)},
        {"base_model.transformer.wte.weight": (51, WIDTH), "base_model.transformer.h.0.attn.weight": (WIDTH, WIDTH)},
        {"base_model.transformer.wte.weight": (51, WIDTH + 1)},
        {"base_model.transformer.wte.weight": (51, WIDTH), "base_model.lm_head.weight": (50, WIDTH)},
    ],
)
def test_what_was_trained_along_is_refused_in_a_folder_and_in_a_file(
    tmp_path: Path, beside: dict[str, tuple[int, ...]]
) -> None:
    path = tmp_path / "voice"
    path.mkdir()
    config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {
        "prompt_embeddings": torch.tensor(matrix()),
        **{name: torch.ones(shape) for name, shape in beside.items()},
    }
    save_file(tensors, path / "adapter_model.safetensors")
    save_file(tensors, tmp_path / "v.safetensors")
    (tmp_path / "v.bin").write_bytes(saved(tensors))
    for file in (path, tmp_path / "v.safetensors", tmp_path / "v.bin"):
        both_refuse(file, "more than a soft prompt")


def test_embeddings_that_were_trained_along_are_refused(tmp_path: Path) -> None:
    path = adapter(tmp_path / "voice", "prompt_tuning", resized=True)
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": ["wte"]}))
    both_refuse(path, "modules_to_save", "wte")
