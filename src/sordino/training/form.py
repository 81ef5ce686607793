"""What a run's matrix stands for: the kind of soft prompt, its placement and its attention.

Shape key: P virtual tokens, W numbers of a virtual token, see `forward.sources`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sordino.forward.prefix import encode_prefixes, packable
from sordino.forward.sources import KVUnits, PrefixSource
from sordino.models.base_model import BaseModel
from sordino.prompts.attention import PLAIN, PromptAttention
from sordino.prompts.kv_prompt import KVPrompt
from sordino.prompts.soft_prompt import Metadata, PlacementName, SoftPrompt
from sordino.training.config import TrainConfig
from sordino.training.contexts import neutral_ids

# Tokens of neutral text that a KV prompt's units are measured on.
_MEASURED = 64


@dataclass(frozen=True, eq=False)
class Form:
    """kv: the units of a KV prompt's matrix, None for an embedding prompt. unit: of the learning rate, an embedding's RMS or 1."""

    placement: PlacementName
    attention: PromptAttention
    unit: float
    kv: KVUnits | None = None

    def source(self, matrix_PW: Tensor, context: tuple[int, ...] = ()) -> PrefixSource:
        return PrefixSource(matrix_PW, self.placement, self.attention, self.kv, context)

    def prompt(self, matrix_PW: Tensor, known: Metadata) -> SoftPrompt | KVPrompt:
        """The finished soft prompt, its metadata with placement and attention."""
        changed = {"placement": self.placement, "attention": self.attention}
        matrix_PW = matrix_PW.detach()
        if self.kv is None:
            return SoftPrompt(matrix_PW.numpy(), known).with_metadata(**changed)
        flat_PW, last_D = self.kv.split(matrix_PW)
        return KVPrompt(flat_PW.numpy(), self.kv.shape, last_D.numpy(), known).with_metadata(**changed)

    @torch.no_grad()
    def matrix_of_embeds(self, base: BaseModel, matrix_PD: Tensor) -> Tensor:
        """The matrix that stands for a prompt of vectors [P, D]."""
        if self.kv is None:
            return matrix_PD
        embeds = PrefixSource(matrix_PD, self.placement).embeds(base)
        return self.kv.matrix(encode_prefixes(base.network, [embeds]), len(matrix_PD))

    def matrix_of_kv(self, prompt: KVPrompt) -> Tensor:
        """The matrix that stands for a KV prompt."""
        assert self.kv is not None
        return self.kv.joined(torch.from_numpy(prompt.flat_PW.copy()), torch.from_numpy(prompt.last_D.copy()))

    def empty(self, base: BaseModel, tokens: int) -> Tensor:
        """Zeros of the matrix's shape, for what a checkpoint fills."""
        return torch.zeros(tokens, base.d_model) if self.kv is None else torch.zeros(tokens + 1, len(self.kv.unit_W))


def placement_of(base: BaseModel, config: TrainConfig) -> PlacementName:
    """After BOS where the tokenizer writes one (the attention sink stays where it was), unless the settings say otherwise."""
    if config.kind == "kv" and not base.bos_ids:
        # Its keys are rotated for the positions that its file names.
        return "start"
    return base.placement if config.placement == "auto" else config.placement


def notes_on_hold(base: BaseModel, config: TrainConfig) -> tuple[str, ...]:
    """For the user, where `form_of` leaves hold out."""
    if base.encoder_decoder is not None:
        return ("hold and text between prompt and rows are off: an encoder reads its whole input at once",)
    if not config.hold or packable(base.network):
        return ()
    return (f"hold is off: it is not tested on {base.family} models (docs/models.md)",)


def form_of(base: BaseModel, config: TrainConfig) -> Form:
    """What a run with these settings trains. Hold is off on families whose masks are not proven (docs/models.md).

    Raises ConfigError for a KV prompt of an encoder-decoder.
    """
    if config.kind == "kv":
        base.check_decoder("a KV prompt")
    held = config.hold and packable(base.network)
    placement, attention = placement_of(base, config), PromptAttention(config.hold) if held else PLAIN
    if config.kind == "embedding":
        return Form(placement, attention, base.embedding_rms)
    embeds = PrefixSource(base.embed(torch.tensor(neutral_ids(base, _MEASURED), device=base.device)), placement).embeds(
        base
    )
    with torch.no_grad():
        return Form(placement, attention, 1.0, KVUnits.of(encode_prefixes(base.network, [embeds])))
