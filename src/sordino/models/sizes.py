"""The sizes of a base model as far as they can be had at once: without torch, without a download, without reading weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.errors import ModelError
from sordino.models import fingerprint, hub
from sordino.models.bundled import BUNDLED
from sordino.models.gguf_header import EMBEDDINGS, read_gguf_header
from sordino.models.names import bundled_names, resolve
from sordino.prompts.fit import Fit, Stated, checked, fit, stated_by, weakest
from sordino.prompts.mixture import Mixture, components_of
from sordino.prompts.prompt import Prompt
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


def check_sizes(name: str, prompts: Iterable[Prompt | Mixture]) -> None:
    """Refuse soft prompts of other sizes than a model has, as far as they are known before it is loaded. Raises DoesNotFit."""
    try:
        sizes = sizes_of(name)
    except ModelError:
        # Loading it says what is wrong, or gets it first.
        return
    for prompt in prompts:
        found = sizes.fit([stated_by(part) for part in components_of(prompt)])
        checked(found, prompt.metadata.name, force=found.forcible)


def parameters_in(folder: Path) -> int:
    """How many numbers the weights of a transformers folder hold; of pickles estimated by their size. Raises ModelError."""
    weights = fingerprint.weight_files(folder)
    if weights[0].suffix == ".safetensors":
        return sum(fingerprint.n_parameters(fingerprint.safetensors_tensors(path)) for path in weights)
    config = fingerprint.json_object(folder / "config.json")
    dtype = str(config.get("dtype") or config.get("torch_dtype"))
    return sum(path.stat().st_size for path in weights) // (2 if dtype.endswith("16") else 4)


def _of_gguf(model_id: str, path: Path) -> BaseRef:
    """Without the family, which GGUF calls by other names than transformers."""
    header = read_gguf_header(path)
    vocab, width = next((tensor.shape for tensor in header.tensors if tensor.name == EMBEDDINGS), (0, 0))
    layers = header.fields.get(f"{header.architecture}.block_count", 0)
    return BaseRef(model_id, "", width, layers if isinstance(layers, int) else 0, vocab)


def _of_folder(model_id: str, folder: Path) -> BaseRef:
    """Without the vocabulary: weights may have more rows than the configuration says."""
    config = fingerprint.json_object(folder / "config.json")
    text = config.get("text_config") or config.get("encoder") or config
    if not isinstance(text, dict):
        raise ModelError("its configuration cannot be read", where=folder, got="text_config", do="fetch it again")
    return BaseRef(model_id, str(config.get("model_type", "")), _first(text, _WIDTHS), _first(text, _LAYERS))


def _first(config: Mapping[str, Any], names: Sequence[str]) -> int:
    return next((value for name in names if isinstance(value := config.get(name), int)), 0)
