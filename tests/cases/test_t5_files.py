"""T5 prompts of other programs: google-research's .npy files, exelents' pytorch_weights.bin. Read, fit, run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sordino import formats
from sordino.engine.generate import TextRequest, draw
from sordino.engine.sampling import Sampling
from sordino.errors import DoesNotFit, SoftPromptFileError
from sordino.evaluation.config import EvaluateConfig
from sordino.evaluation.measuring import evaluate
from sordino.forward.encoder_decoder import InputPrefixes
from sordino.forward.placement import encode_prompts
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import SoftPrompt
from tests.cli.commands import done
from tests.evaluation.test_encoder_decoders import ROWS
from tests.parity.plain_pairs import plain_inputs, plain_pair_nll
from tests.tiny_models import tiny_base

TEXT, NEW = "the keeper wrote of the sea", 6


def t5(width: int) -> BaseModel:
    return tiny_base("t5-1.1", d_model=width, num_layers=2)


def works(base: BaseModel, prompt: SoftPrompt) -> None:
    """Greedy tokens are those of `generate`, and losses those of plain concatenation."""
    matrix_PD = torch.from_numpy(prompt.matrix.copy())
    prefixes = encode_prompts(base, [prompt])
    assert isinstance(prefixes, InputPrefixes)
    assert torch.equal(prefixes.embeds[0], matrix_PD)
    read = plain_inputs(base, matrix_PD, base.encode(TEXT))
    expected = base.network.generate(
        inputs_embeds=read,
        attention_mask=torch.ones(read.shape[:2], dtype=torch.long),
        max_new_tokens=NEW,
        do_sample=False,
    )[0, 1:].tolist()
    (drawn,) = draw(base, [TextRequest(TEXT, prompt)], Sampling(max_tokens=NEW, temperature=0), rows=1)
    tokens = [one.token for one in drawn.tokens]
    assert tokens == [token for token in expected if token not in base.stop_ids][: len(tokens)]
    report = evaluate(base, {"p": prompt}, ROWS, EvaluateConfig(resamples=100))
    line = next(line for line in report.heldout.lines if line.kind == "soft prompt")
    outputs = [[*base.encode(piece.text.lstrip()), 1] for piece in ROWS]
    nll = sum(
        float(plain_pair_nll(base, matrix_PD, base.encode(piece.prompt), ids).sum())
        for piece, ids in zip(ROWS, outputs, strict=True)
    )
    assert abs(line.nll.value - nll / sum(map(len, outputs))) < 1e-7


@pytest.mark.parametrize(("name", "shape"), [("prompt_5x256.npy", (5, 256)), ("sst2.npy", (100, 768))])
def test_googles_files_run_on_a_t5_of_their_width(shared_dir: Path, name: str, shape: tuple[int, int]) -> None:
    prompt = formats.read_single(shared_dir / "samples" / "google" / name)
    assert prompt.matrix.shape == shape
    assert prompt.metadata.placement == "start"
    base = t5(shape[1])
    # A bare matrix says nothing of its model.
    assert base.fit(prompt).kind == "unknown"
    works(base, prompt)
    other = t5(64)
    assert other.fit(prompt).kind == "no"
    with pytest.raises(DoesNotFit):
        draw(other, [TextRequest(TEXT, prompt)], Sampling(max_tokens=1), rows=1)


def test_exelents_files_hold_several_prompts(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    several = (random.normal(size=(3, 7, 48)) * 5).astype(np.float32)
    path = tmp_path / "pytorch_weights.bin"
    torch.save({"s_wte.learned_embedding": torch.from_numpy(several)}, path)
    with pytest.raises(SoftPromptFileError, match=r"0-2: s_wte\.learned_embedding \[3, 7, 48\]"):
        formats.read(path)
    done("convert", path, tmp_path / "second.zip", "--index", 1)
    prompt = formats.read_single(tmp_path / "second.zip")
    assert np.array_equal(prompt.matrix, several[1])
    works(t5(48), prompt)


def test_a_single_one_of_exelents_needs_no_index(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(1, 4, 48)).astype(np.float32)
    path = tmp_path / "pytorch_weights.bin"
    torch.save({"s_wte.learned_embedding": torch.nn.Parameter(torch.from_numpy(values))}, path)
    prompt = formats.read_single(path)
    assert np.array_equal(prompt.matrix, values[0])
    works(t5(48), prompt)
