"""`bake`: a copy of a base model that writes with soft prompts in every program.

soft prompts ─▶ tokens ─┐
base model ─▶ least likely token ─┴─▶ .gguf file, or transformers folder
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from sordino import formats
from sordino.baking import folder, gguf_file
from sordino.baking.tokens import VARIABLE, BakedPrompt, check_placement, check_unbaked, not_kept, to_bake
from sordino.engine.config import EngineOptions
from sordino.engine.runners.build import gguf_runner
from sordino.engine.runners.runner import Runner, Span
from sordino.engine.runners.torch_runner import TorchRunner
from sordino.errors import ConfigError
from sordino.library.outputs import check_new
from sordino.models import base_model, files
from sordino.models.catalogue import catalogue
from sordino.models.description import DescribedModel, describe
from sordino.models.files import ModelSource, Notify, silent
from sordino.models.gguf_conversion import read_gguf_config
from sordino.models.gguf_header import read_gguf_header
from sordino.models.loading import CONFIG, read_config
from sordino.prompts.kv_prompt import SinglePrompt


@dataclass(frozen=True)
class Baked:
    """texts: by soft prompt, what to put in front of a text. notes: a line each, what a baked model does not do."""

    path: Path
    texts: Mapping[str, str]
    notes: Sequence[str]


def bake(
    model: str,
    prompts: Mapping[str, SinglePrompt],
    target: Path,
    *,
    always: bool = False,
    force: bool = False,
    overwrite: bool = False,
    notify: Notify = silent,
) -> Baked:
    """Write a copy of a base model with these soft prompts as tokens: a .gguf file if `target` is called so, else a folder for
    transformers.

    model: its name. always: every text begins with the first soft prompt (folders only). force: also a soft prompt for another
    model of the same width. overwrite: what `target` is. Raises BadInput, ConfigError, DoesNotFit, ModelError, StorageError,
    OutOfMemory, MissingExtra.
    """
    source = files.resolve(model)
    _check_target(target, overwrite=overwrite)
    baked = to_bake(prompts)
    if target.suffix.lower() != ".gguf":
        return _to_folder(source, baked, target, always=always, force=force, notify=notify)
    if always:
        raise ConfigError(
            "a .gguf file has no place for it: programs choose what begins a text",
            where="--always",
            do="leave it out, or write a folder",
        )
    path = files.gguf_file(source, notify=notify)
    if path is None:
        raise ConfigError(
            "a .gguf file is made from a .gguf file, and this base model is none",
            where="--out",
            got=model,
            do="bake a folder, and convert that with llama.cpp's convert_hf_to_gguf.py",
        )
    return _to_gguf(source, path, baked, target, force=force, notify=notify)


def _check_target(target: Path, *, overwrite: bool) -> None:
    """Raise ConfigError, BadInput or StorageError where it could not be written."""
    if target.suffix and target.suffix.lower() in formats.WRITABLE.values() and not target.is_dir():
        raise ConfigError(
            "this is the name of a soft prompt's file, and a copy of a base model is written",
            where="--out",
            expected="NAME.gguf, or the name of a folder",
            got=target,
        )
    if target.suffix.lower() == ".gguf" or target.is_file():
        check_new(target, overwrite=overwrite)
    else:
        # A folder: as for a file in it, or for one beside it.
        check_new((target if target.is_dir() else target.parent) / CONFIG, overwrite=overwrite or not target.is_dir())


def _to_folder(
    source: ModelSource,
    baked: Sequence[BakedPrompt],
    target: Path,
    *,
    always: bool,
    force: bool,
    notify: Notify,
) -> Baked:
    prepared = files.prepare(source, notify=notify)
    # The numbers of its files, so that the copy is no larger.
    stored = getattr(read_config(prepared.folder), "dtype", None) or torch.float32
    dtype = next((name for name, number in base_model.DTYPES.items() if number == stored), "float32")
    base = base_model.load(source.name, dtype=dtype, device="cpu", only_decoders="baking", notify=notify)
    _check(base, baked, force=force)
    notify("looking for the token that is least likely")
    unlikely = least_likely(TorchRunner(base), folder.reserved_ids(base))
    notify(f"writing {target.name}")
    folder.bake_folder(base, target, baked, silent=unlikely, always=always, card=_card(base, baked))
    return Baked(target, {one.name: one.text for one in baked}, not_kept(baked))


def _to_gguf(
    source: ModelSource,
    path: Path,
    baked: Sequence[BakedPrompt],
    target: Path,
    *,
    force: bool,
    notify: Notify,
) -> Baked:
    described = describe(source, path, notify=notify)
    _check(described, baked, force=force)
    header = read_gguf_header(path)
    notify("looking for the token that is least likely")
    with gguf_runner(described, path, EngineOptions(rows=1), row_cells=2 * TOKENS) as runner:
        unlikely = least_likely(runner, gguf_file.reserved_ids(header.fields))
    notify(f"writing {target.name}")
    gguf_file.bake_gguf(
        path,
        target,
        baked,
        silent=unlikely,
        scale=_scale(read_gguf_config(header)),
        model=described,
        about=_about(described, baked),
    )
    return Baked(target, {one.name: one.text for one in baked}, not_kept(baked))


def _check(model: DescribedModel, prompts: Sequence[BakedPrompt], *, force: bool) -> None:
    check_placement(model, prompts)
    check_unbaked(model, prompts)
    for one in prompts:
        model.check_fit(one.prompt, force=force)


def _scale(config: Any) -> float:
    """What llama.cpp, like transformers, multiplies input embeddings with: Gemma's sqrt(d)."""
    with torch.device("meta"):
        network: Any = AutoModelForCausalLM.from_config(config)
    return float(getattr(network.get_input_embeddings(), "scalar_embed_scale", 1.0))


def _about(model: DescribedModel, prompts: Sequence[BakedPrompt]) -> str:
    """A sentence for the metadata."""
    listed = []
    for one in prompts:
        licence = one.prompt.metadata.licence
        listed.append(f"{one.name} ({one.prompt.n_tokens} virtual tokens{f', licence {licence}' if licence else ''})")
    known = next((one.licence for one in catalogue().values() if model.id in (one.name, one.sizes.id)), "")
    base = f"{model.id} (licence {known})" if known else model.id
    return f"{base} with soft prompts as tokens, baked by Sordino: {', '.join(listed)}"


def _card(model: DescribedModel, prompts: Sequence[BakedPrompt]) -> str:
    """README.md: the model card."""
    fields: dict[str, object] = {
        "base_model": model.id,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["soft-prompt", "sordino"],
    }
    head = "".join(f"{name}: {json.dumps(value)}\n" for name, value in sorted(fields.items()))
    parts = [f"# {' + '.join([model.id, *(one.name for one in prompts)])}", _about(model, prompts) + "."]
    parts += [f"Put this in front of a text for {one.name}:\n\n```\n{one.text}\n```" for one in prompts]
    parts.append(
        f"The chat template writes the first by itself. Its variable `{VARIABLE}` chooses another by name, or none with an empty "
        "name."
    )
    return f"---\n{head}---\n\n" + "\n\n".join(parts) + "\n"


# Prose, a conversation, a program, other languages: what is unlikely after all of these.
TEXTS = (
    "The keeper wrote in the log that the lamp was clean and that the wind had gone round to the west. Three ships went by.",
    "User: What is the capital of France?\nAssistant: Paris, for most of the time since 987.\nUser: Thank you!",
    'import json\n\ndef main(path: str) -> int:\n    """Count lines."""\n    return sum(1 for _ in open(path))\n',
    "Der Wärter schrieb, die Lampe sei sauber. El viento venía del oeste. 灯塔很安静。 Маяк молчал.",
)
# Tokens of each: a large vocabulary takes a megabyte a token.
TOKENS = 64


def least_likely(runner: Runner, reserved: Collection[int]) -> int:
    """The id, of those `reserved` for other uses than text, whose highest probability after these texts is the lowest; of all ids
    where none is reserved. Runs one row at a time.

    The new tokens' rows of the output head are copies of its row: zeros would be wrong, as a logit of 0 is above most others.
    """
    highest_V: np.ndarray | None = None
    model = runner.model
    for number, text in enumerate(TEXTS):
        ids = model.encode(text)[:TOKENS]
        if runner.open(number, None, ids) is None or not runner.grow(number, len(ids)):
            raise AssertionError("room for one row of this length was asked for")
        logits_PV = np.asarray(runner.run([Span(number, ids, len(ids))]), dtype=np.float32)
        runner.close(number, [])
        top_P1 = logits_PV.max(axis=1, keepdims=True)
        sums_P1 = np.exp(logits_PV - top_P1).sum(axis=1, keepdims=True)
        likely_V = (logits_PV - top_P1 - np.log(sums_P1)).max(axis=0)
        highest_V = likely_V if highest_V is None else np.maximum(highest_V, likely_V)
    assert highest_V is not None
    candidates = sorted(reserved) or list(range(len(highest_V)))
    return min(candidates, key=lambda one: float(highest_V[one]))
