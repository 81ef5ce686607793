"""PEFT is the referee for encoder-decoders too: prompt tuning with SEQ_2_SEQ_LM, both ways."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sordino.errors import SoftPromptFileError
from sordino.formats import read, write
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.parity.plain_pairs import plain_pair_logits
from tests.tiny_models import tiny_base

TEXT, ANSWER = "the keeper wrote of the sea and the ship", [5, 90, 17, 1]


@pytest.fixture(params=["t5", "t5-1.1", "bart"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    return tiny_base(request.param, dtype=torch.float32)


def copied(base: BaseModel) -> torch.nn.Module:
    network = copy.deepcopy(base.network)
    # PEFT 0.21 takes it along for `generate`; transformers has none any more.
    network._prepare_encoder_decoder_kwargs_for_generation = None
    return network


def our_logits(base: BaseModel, prompt: SoftPrompt) -> torch.Tensor:
    with torch.no_grad():
        return plain_pair_logits(base, torch.from_numpy(prompt.matrix.copy()), base.encode(TEXT), ANSWER)


def peft_logits(model: torch.nn.Module, base: BaseModel) -> torch.Tensor:
    sides = base.encoder_decoder
    assert sides is not None
    ids = torch.tensor([[*base.bos_ids, *base.encode(TEXT), *sides.end_ids]])
    written = torch.tensor([[*sides.start_ids, *ANSWER]])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=written).logits[0]
    return logits[len(sides.start_ids) - 1 : -1]


def test_an_exported_prompt_gives_the_same_logits_in_peft(base: BaseModel, tmp_path: Path) -> None:
    from peft import PeftModel, PeftModelForSeq2SeqLM

    matrix = np.random.default_rng(0).normal(size=(7, base.d_model), scale=base.embedding_rms).astype(np.float32)
    prompt = SoftPrompt(matrix, Metadata(name="v", base=base.ref, placement="start"))
    write(prompt, tmp_path / "adapter", to="peft")
    model = PeftModel.from_pretrained(copied(base), tmp_path / "adapter").eval()
    assert isinstance(model, PeftModelForSeq2SeqLM)
    assert float((our_logits(base, prompt) - peft_logits(model, base)).abs().max()) <= 1e-4


@pytest.mark.parametrize("submodules", [1, 2, None])
def test_a_prompt_that_peft_saved_gives_the_same_logits_here(
    base: BaseModel, tmp_path: Path, submodules: int | None
) -> None:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    config = PromptTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=6, num_transformer_submodules=submodules
    )
    torch.manual_seed(0)
    model = get_peft_model(copied(base), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    prompt = read(tmp_path / "adapter")
    assert (prompt.n_tokens, prompt.metadata.placement) == (6, "start")
    assert float((our_logits(base, prompt) - peft_logits(model, base)).abs().max()) <= 1e-4


def test_other_kinds_for_encoder_decoders_are_refused(base: BaseModel, tmp_path: Path) -> None:
    prompt = SoftPrompt(np.ones((3, base.d_model), np.float32), Metadata(name="v", base=base.ref, placement="start"))
    write(prompt, tmp_path / "adapter", to="peft")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    assert (config["task_type"], config["num_transformer_submodules"]) == ("SEQ_2_SEQ_LM", 1)
    path.write_text(json.dumps({**config, "peft_type": "MULTITASK_PROMPT_TUNING"}))
    with pytest.raises(SoftPromptFileError, match="nor to stand ahead of an encoder"):
        read(tmp_path / "adapter")
