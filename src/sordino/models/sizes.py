"""The sizes of a base model as far as they can be had at once: without torch, without a download, without reading weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.errors import ModelError
from sordino.models import hub
from sordino.models.bundled import BUNDLED
from sordino.models.gguf_header import EMBEDDINGS, read_gguf_header
from sordino.models.names import bundled_names, resolve
from sordino.prompts.fit import Fit, Stated, fit, weakest
from sordino.prompts.soft_prompt import BaseRef

# By the names that configurations use. OPT's embeddings may be narrower than its layers.
_WIDTHS = ("word_embed_proj_dim", "hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")


@dataclass(frozen=True)
class ModelSizes:
    """name: the user's. ref: without the fingerprint, and without sizes that the configuration does not say in a common way."""

    name: str
    ref: BaseRef

    def fit(self, parts: Sequence[Stated]) -> Fit:
        """How well a soft prompt, or a mixture by its components, fits."""
        return weakest([fit(self.ref, part, names=(self.name,)) for part in parts])


def sizes_of(name: str) -> ModelSizes:
    """Raises ModelError where the model is not on this machine, or broken."""
    source = resolve(name)
    if source.kind == "bundled":
        return ModelSizes(name, BUNDLED[source.name].sizes)
    if source.kind == "gguf" and source.path is not None:
        return ModelSizes(name, _of_gguf(source.id, source.path))
    folder = source.path or hub.on_this_machine(source.id)
    if folder is None:
        raise ModelError(
            "its sizes are not known, as it is not on this machine",
            where=name,
            do=f"run `hf download {name}`, or name {bundled_names()}",
        )
    return ModelSizes(name, _of_folder(source.id, folder))


def fitting_here(parts: Sequence[Stated]) -> tuple[list[str], list[str]]:
    """The names of the models on this machine, or bundled, that a soft prompt, or a mixture, may fit; and those of all of them."""
    known: dict[str, ModelSizes] = {}
    for name in [*BUNDLED, *hub.downloaded()]:
        # What is there in part, or is no language model, is not for use.
        with suppress(ModelError):
            known[name] = sizes_of(name)
    return [name for name, sizes in known.items() if sizes.fit(parts).kind != "no"], list(known)


def _of_gguf(model_id: str, path: Path) -> BaseRef:
    """Without the family, which GGUF calls by other names than transformers."""
    header = read_gguf_header(path)
    vocab, width = next((tensor.shape for tensor in header.tensors if tensor.name == EMBEDDINGS), (0, 0))
    layers = header.fields.get(f"{header.architecture}.block_count", 0)
    return BaseRef(model_id, "", width, layers if isinstance(layers, int) else 0, vocab)


def _of_folder(model_id: str, folder: Path) -> BaseRef:
    """Without the vocabulary: weights may have more rows than the configuration says."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config") or config
        return BaseRef(model_id, str(config.get("model_type", "")), _first(text, _WIDTHS), _first(text, _LAYERS))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError("its configuration cannot be read", where=folder, got=error, do="fetch it again") from None


def _first(config: Mapping[str, Any], names: Sequence[str]) -> int:
    return next((value for name in names if isinstance(value := config.get(name), int)), 0)
