"""Two other ways to change how a frozen model writes, as networks that are run like any other: LoRA and a control vector.

LoRA is PEFT's, merged into a copy of the weights: the numbers are the adapter's, in the time of the base model.

The control vector is made as repeng 0.4.0 does with method="pca_center" (Zou et al. 2023, arXiv 2310.01405): in each of the middle
layers, the first principal component of the differences between the last hidden states of paired texts, here excerpts of the voice
and neutral ones; it is added to the layer's output. repeng itself cannot run here, as it needs numpy below 2. What is added to a
layer's output for every token is a bias of its last product, so the vector is put there.

Shape key: D model width, E pairs of texts, L steered layers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sordino.forward.llama_layers import layers_of
from sordino.forward.nll import nll_of_rows
from sordino.forward.packing import labelled_rows, one_by_one
from sordino.forward.prefix import encode_prefixes
from sordino.models.base_model import BaseModel
from sordino.texts.examples import Example
from sordino.training.contexts import Contexts
from sordino.training.run import PreparedRun
from sordino.training.schedule import batch_at, learning_rate

LORA_RATE = 1e-3
Directions = Mapping[int, NDArray[np.float32]]


def train_lora(base: BaseModel, prepared: PreparedRun, folder: Path) -> None:
    """r = 8 on all linear layers, for as many steps as the run, on its rows after its texts between. Writes PEFT's folder."""
    from peft import LoraConfig, TaskType, get_peft_model

    config = replace(prepared.config, lr=LORA_RATE)
    own = _copy(base)
    torch.manual_seed(config.seed)
    settings = LoraConfig(task_type=TaskType.CAUSAL_LM, r=8, lora_alpha=16, target_modules="all-linear")
    model: Any = get_peft_model(own.network, settings)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LORA_RATE)
    contexts = Contexts.of(base, config, prepared.data.train)
    for step in range(config.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, config)
        optimiser.zero_grad()
        _mean_nll(own, contexts.at(step), batch_at(prepared.data.train, step, config)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimiser.step()
    model.save_pretrained(folder)


def _mean_nll(base: BaseModel, context: Sequence[int], examples: Sequence[Example]) -> Tensor:
    """Of the rows of a step, which share their context."""
    ids = torch.tensor([*base.bos_ids, *context], dtype=torch.long, device=base.device)
    prefixes = encode_prefixes(base.network, [base.embed(ids)])
    if not len(ids):
        # There is nothing to predict a first token from.
        examples = [replace(e, labelled=(False, *e.labelled[1:])) for e in examples]
    part = labelled_rows(examples, one_by_one([len(e.ids) for e in examples]), [0] * len(examples))
    return nll_of_rows(base.network, prefixes, part.rows.to(base.device), part.labelled_BT.to(base.device)).mean()


def with_lora(base: BaseModel, folder: Path) -> BaseModel:
    from peft import PeftModel

    own = _copy(base)
    network: Any = PeftModel.from_pretrained(own.network, str(folder)).merge_and_unload()
    return replace(own, network=network.eval().requires_grad_(False))


def steered_layers(base: BaseModel) -> range:
    """The middle ones, as far in as those of repeng's examples: layers 15 to 27 of 32."""
    return range(round(0.45 * base.n_layers), round(0.87 * base.n_layers))


@torch.inference_mode()
def control_vector(base: BaseModel, positive: Sequence[Sequence[int]], negative: Sequence[Sequence[int]]) -> Directions:
    """A direction of length 1 for each steered layer, from pairs of texts as ids, all of one length."""
    layers = steered_layers(base)
    differences = _last_states(base, positive, layers) - _last_states(base, negative, layers)
    found = {}
    for layer, of_ED in zip(layers, differences.transpose(0, 1), strict=True):
        direction_D = torch.linalg.svd(of_ED, full_matrices=False).Vh[0]
        # A component has no sign: that of most pairs.
        towards = (of_ED @ direction_D).sign().sum()
        found[layer] = (-direction_D if towards < 0 else direction_D).numpy()
    return found


def _last_states(base: BaseModel, texts: Sequence[Sequence[int]], layers: range, *, rows: int = 16) -> Tensor:
    """The layers' outputs at the last token of each text [E, L, D], on the CPU."""
    network: Any = base.network
    found = []
    for at in range(0, len(texts), rows):
        ids_BT = torch.tensor([list(text) for text in texts[at : at + rows]], device=base.device)
        states = network.base_model(input_ids=ids_BT, output_hidden_states=True).hidden_states
        found.append(torch.stack([states[layer + 1][:, -1].float().cpu() for layer in layers], dim=1))
    return torch.cat(found)


def with_control(base: BaseModel, directions: Directions, strength: float) -> BaseModel:
    own = _copy(base)
    for layer, direction in directions.items():
        bias_D = torch.from_numpy(direction * strength).to(base.device, base.dtype)
        layers_of(own.network)[layer].mlp.down_proj.bias = torch.nn.Parameter(bias_D, requires_grad=False)
    return own


def _copy(base: BaseModel) -> BaseModel:
    return replace(base, network=copy.deepcopy(base.network))
