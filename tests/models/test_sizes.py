"""Sizes of models without loading them are those of the loaded ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sordino.errors import ModelError
from sordino.models import base_model, sizes
from sordino.models.bundled import BUNDLED
from sordino.models.catalogue import fitting_here, sizes_here
from sordino.models.gguf_header import read_gguf_header
from sordino.models.names import resolve
from sordino.models.sizes import sizes_of
from sordino.prompts.fit import Stated
from sordino.prompts.soft_prompt import BaseRef, Metadata
from tests.tiny_models import saved_tiny

FAMILIES = ("llama", "gpt2", "gptj", "gpt_neox")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_says_what_the_loaded_model_does(tmp_path: Path, family: str) -> None:
    saved_tiny(tmp_path / "m", family)
    loaded, known = base_model.load(str(tmp_path / "m")).ref, sizes_of(str(tmp_path / "m")).ref
    assert (known.id, known.family, known.d_model, known.n_layers) == (
        loaded.id, loaded.family, loaded.d_model, loaded.n_layers,
    )  # fmt: skip


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_says_what_its_file_does(name: str) -> None:
    path = resolve(name).path
    if path is None or not path.is_file():
        pytest.skip("the model is not on this machine")
    known, file = sizes_of(name).ref, sizes_of(str(path)).ref
    assert (known.d_model, known.n_layers, known.vocab_size) == (file.d_model, file.n_layers, file.vocab_size)
    assert file.d_model
    facts, header = BUNDLED[name], read_gguf_header(path)
    assert (facts.context_length, facts.cache_shape) == (header.context_length, header.cache_shape)
    assert facts.sizes.vocab_size == header.vocab_size


def test_models_of_the_hub_that_are_not_whole_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gptj", "n_embd": 4096, "n_layer": 28}))
    places = {"org/whole": tmp_path, "org/part": None}
    monkeypatch.setattr(sizes.hub, "downloaded", lambda: list(places))
    monkeypatch.setattr(sizes.hub, "on_this_machine", places.get)
    old = Stated(Metadata(supported=("EleutherAI/gpt-j-6B",)), 4096)
    assert list(sizes_here()) == [*BUNDLED, "org/whole"]
    assert fitting_here([old], sizes_here()) == ["org/whole"]
    with pytest.raises(ModelError, match="not on this machine"):
        sizes_of("org/part")
    assert sizes_of("org/whole").ref == BaseRef("org/whole", "gptj", 4096, 28)


def test_a_broken_configuration_is_an_error(tmp_path: Path) -> None:
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match="cannot be read"):
            sizes_of(str(tmp_path))
