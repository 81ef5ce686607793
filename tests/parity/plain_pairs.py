"""The plain way for encoder-decoders: one row at a time, prompt and input concatenated, through transformers' own forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sordino.models.base_model import BaseModel


def plain_inputs(base: BaseModel, prompt_PD: Tensor, input_ids: Sequence[int]) -> Tensor:
    """[1, S, D]: the prompt, then the input with what the model's tokenizer writes around it."""
    sides = base.encoder_decoder
    assert sides is not None
    ids = torch.tensor([*base.bos_ids, *input_ids, *sides.end_ids])
    return torch.cat([prompt_PD.to(base.dtype), base.embed(ids)])[None]


def plain_pair_logits(base: BaseModel, prompt_PD: Tensor, input_ids: Sequence[int], output: Sequence[int]) -> Tensor:
    """Logits [T, V], each of them predicting a token of the output."""
    sides = base.encoder_decoder
    assert sides is not None
    written = torch.tensor([[*sides.start_ids, *output]])
    read = plain_inputs(base, prompt_PD, input_ids)
    ones = (torch.ones(read.shape[:2], dtype=torch.long), torch.ones_like(written))
    logits = base.network(
        inputs_embeds=read, attention_mask=ones[0], decoder_input_ids=written, decoder_attention_mask=ones[1]
    ).logits[0]
    return logits[len(sides.start_ids) - 1 : -1]


def plain_pair_nll(base: BaseModel, prompt_PD: Tensor, input_ids: Sequence[int], output: Sequence[int]) -> Tensor:
    """NLL [T] of the output's tokens."""
    logits = plain_pair_logits(base, prompt_PD, input_ids, output)
    return torch.nn.functional.cross_entropy(logits, torch.tensor(list(output)), reduction="none")
