"""The components of a mixture that are trained together, each of its own kind, as the one matrix of a run.

A row of that matrix is as wide as the widest component's. Its numbers are in units that make one learning rate each kind's own:
what Adam moves by `lr` moves an embedding prompt by its rate times the model's embedding RMS, and a KV prompt by its rate times the
RMS of each layer's keys and values.

Shape key: P virtual tokens of a component, R rows of its matrix (P, of a KV prompt P + 1), W their numbers, see `forward.sources`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sordino.evaluation.conditions import Condition, soft_prompt
from sordino.forward.sources import PrefixSource
from sordino.models.base_model import BaseModel
from sordino.prompts.kv_prompt import KVPrompt, SinglePrompt
from sordino.prompts.soft_prompt import Metadata, PlacementName
from sordino.training.config import Kind, TrainConfig
from sordino.training.form import Form, form_of
from sordino.training.mixture.config import JointConfig


@dataclass(frozen=True, eq=False)
class Component:
    """A soft prompt to train or trained: float32 numbers, and what they stand for."""

    form: Form
    matrix_RW: Tensor

    @property
    def tokens(self) -> int:
        return self.form.source(self.matrix_RW).n_tokens

    def prompt(self, known: Metadata) -> SinglePrompt:
        """See `Form.prompt`."""
        return self.form.prompt(self.matrix_RW, known)

    def condition(self, base: BaseModel) -> Condition:
        """To measure it."""
        return soft_prompt(base, "", self.prompt(Metadata()))


def component_form(base: BaseModel, kind: Kind, placement: PlacementName) -> Form:
    """The form of a new component, whose attention is not held."""
    return form_of(base, TrainConfig(kind=kind, placement=placement, hold=0))


def component_of(base: BaseModel, prompt: SinglePrompt) -> Component:
    """A finished soft prompt as the start of training, with its placement and attention."""
    known = prompt.metadata
    form = component_form(base, "kv" if isinstance(prompt, KVPrompt) else "embedding", known.placement)
    form = replace(form, attention=known.attention)
    if isinstance(prompt, KVPrompt):
        return Component(form, form.matrix_of_kv(prompt))
    return Component(form, torch.from_numpy(prompt.matrix.copy()))


@dataclass(frozen=True, eq=False)
class MatrixPart:
    """Where a component is in a run's matrix: its next `rows` rows, of each `width` numbers, times `scale`."""

    form: Form
    rows: int
    width: int
    scale: float

    def source(self, rows_RV: Tensor) -> PrefixSource:
        """Differentiable."""
        return self.form.source(rows_RV[:, : self.width] * self.scale)

    def component(self, rows_RV: Tensor) -> Component:
        return Component(self.form, (rows_RV[:, : self.width] * self.scale).detach().clone())


def kind_of_run(components: Sequence[Component]) -> Kind:
    """The kind whose units a run of these has: "kv" where one of them is."""
    return "kv" if any(component.form.kv for component in components) else "embedding"


def stacked(components: Sequence[Component], config: JointConfig) -> tuple[Tensor, list[MatrixPart]]:
    """The run's matrix, and where in it each component is."""
    run = kind_of_run(components)
    # If all are embedding prompts, the run's unit is theirs, and no number is rescaled.
    unit = components[0].form.unit if run == "embedding" else 1.0
    widest = max(component.matrix_RW.shape[1] for component in components)
    parts, slots = [], []
    for component in components:
        kind: Kind = "embedding" if component.form.kv is None else "kv"
        scale = component.form.unit / unit * config.rate(kind) / config.rate(run)
        rows, width = component.matrix_RW.shape
        parts.append(torch.nn.functional.pad(component.matrix_RW.detach() / scale, (0, widest - width)))
        slots.append(MatrixPart(component.form, rows, width, scale))
    return torch.cat(parts), slots
