"""Encoder-decoders from a folder: what is known of them, how prompts fit, and what is refused before weights are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import T5ForConditionalGeneration
from transformers.activations import NewGELUActivation

from sordino.errors import ConfigError
from sordino.models import base_model, loading
from sordino.models.sizes import sizes_of
from sordino.prompts.encoder_decoders import OnlyDecoders
from sordino.prompts.fit import stated_by
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.tiny_models import ENCODER_DECODERS, tiny, tokenizer_for


def folder_of(family: str, folder: Path) -> Path:
    tiny(family, dtype=torch.float32).save_pretrained(folder)
    tokenizer_for(family).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_a_folder_loads(family: str, tmp_path: Path) -> None:
    base = base_model.load(str(folder_of(family, tmp_path)), device="cpu", dtype="float32")
    assert base.encoder_decoder is not None
    assert base.encoder_decoder.end_ids == (() if family == "t5gemma" else (1,))
    assert base.placement == "start"
    assert len(base.fingerprint) == 64
    assert (base.d_model, base.n_layers, base.vocab_size, base.kv_shape, base.windowed) == (32, 3, 320, None, ())
    own, loaded = tiny(family, dtype=torch.float32).state_dict(), base.network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in own.items())


def test_a_gated_t5_is_that_of_transformers(tmp_path: Path) -> None:
    """Loaded, its activation is one operation of PyTorch's: the same numbers, but for rounding, of float64 here."""
    base = base_model.load(str(folder_of("t5-1.1", tmp_path)), device="cpu", dtype="float32")
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert not any(isinstance(one, NewGELUActivation) for one in base.network.modules())
    assert any(isinstance(one, NewGELUActivation) for one in theirs.modules())
    ids, written = torch.arange(5, 40)[None], torch.arange(50, 60)[None]
    with torch.no_grad():
        ours, expected = (
            one.double()(input_ids=ids, decoder_input_ids=written).logits for one in (base.network, theirs)
        )
    assert float((ours - expected).norm() / expected.norm()) < 1e-12


def test_what_the_decoder_begins_with() -> None:
    starts = {}
    for family in ENCODER_DECODERS:
        base = base_model.from_parts(tiny(family, dtype=torch.float32), tokenizer_for(family), name=family)
        assert base.encoder_decoder is not None
        starts[family] = base.encoder_decoder.start_ids
    # T5's pad; Gemma's BOS, once; BART's end of text, then the BOS that its generation forces.
    assert starts["t5"] == starts["mt5"] == starts["umt5"] == starts["pegasus"] == starts["marian"] == (0,)
    assert starts["t5gemma"] == (2,)
    assert starts["bart"] == (1, 2)
    assert starts["mbart"] == (1,)


def test_relative_positions_have_no_end_at_those_of_pretraining() -> None:
    base = base_model.from_parts(tiny("t5", n_positions=512, dtype=torch.float32), tokenizer_for("t5"), name="t5")
    assert base.context_length == 2048
    assert base_model.from_parts(tiny("bart"), tokenizer_for("bart"), name="bart").context_length == 256


def test_the_fit_of_a_prompt(tmp_path: Path) -> None:
    name = str(folder_of("t5", tmp_path))
    base = base_model.load(name, device="cpu", dtype="float32")
    prompt = SoftPrompt(np.ones((3, 32), np.float32), Metadata(name="p", base=base.ref))
    assert base.fit(prompt).kind == "exact"
    other = replace(base.ref, fingerprint="0" * 64)
    assert base.fit(prompt.with_metadata(base=other)).kind == "same family"
    assert base.fit(prompt.with_metadata(base=replace(other, family="llama"))).kind == "no"
    known = sizes_of(name)
    assert (known.ref.family, known.ref.d_model, known.ref.n_layers) == ("t5", 32, 3)
    assert known.fit([stated_by(prompt)]).kind == "same family"


@pytest.mark.parametrize("what", get_args(OnlyDecoders))
def test_what_is_not_possible_is_refused_before_the_weights_are_read(
    what: OnlyDecoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model, "read_network", lambda *_, **__: pytest.fail("the weights were read"))
    with pytest.raises(ConfigError, match="not possible with an encoder-decoder: "):
        base_model.load(str(folder_of("t5", tmp_path)), device="cpu", only_decoders=what)
    assert loading.read_network is not base_model.read_network
