"""Rows: text in tokens, each row with the index of its soft prompt.

Shape key: B rows, T text positions, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """B rows of text, each with the index of its prefix. A row may hold several examples one after another (packed).

    ids_BT: token ids, 0 where padded. example_BT: which example of its row a token belongs to, -1 where padded (padding is on
    the right). offset_BT: the token's place in its example. prompt_B: the row's prefix. input_B: how many of
    a row's first tokens an encoder reads; None for a decoder's rows.
    """

    ids_BT: Tensor
    example_BT: Tensor
    offset_BT: Tensor
    prompt_B: Tensor
    input_B: Tensor | None = None

    def to(self, device: torch.device) -> Rows:
        return Rows(
            self.ids_BT.to(device),
            self.example_BT.to(device),
            self.offset_BT.to(device),
            self.prompt_B.to(device),
            None if self.input_B is None else self.input_B.to(device),
        )

    def predictors(self) -> Tensor:
        """The hidden state that predicts each token: an index [B, T] into `cat([hidden.view(B*T, D), last_KD])`.

        A token is predicted by the one before it, an example's first token by its prefix's last hidden state.
        """
        rows, width = self.ids_BT.shape
        before = torch.arange(rows * width, device=self.ids_BT.device).view(rows, width) - 1
        return torch.where(self.offset_BT == 0, rows * width + self.prompt_B[:, None], before)


def rows_from_examples(examples: Sequence[Sequence[Sequence[int]]], prompts: Sequence[int]) -> Rows:
    """Rows from lists of examples: `examples[b]` holds row b's examples, each a list of token ids."""
    width = max((sum(len(ids) for ids in row) for row in examples), default=0)
    shape = (len(examples), width)
    ids_BT = torch.zeros(shape, dtype=torch.long)
    example_BT = torch.full(shape, -1, dtype=torch.long)
    offset_BT = torch.zeros(shape, dtype=torch.long)
    for b, row in enumerate(examples):
        start = 0
        for e, ids in enumerate(row):
            end = start + len(ids)
            ids_BT[b, start:end] = torch.tensor(ids, dtype=torch.long)
            example_BT[b, start:end] = e
            offset_BT[b, start:end] = torch.arange(len(ids))
            start = end
    return Rows(ids_BT, example_BT, offset_BT, torch.tensor(list(prompts), dtype=torch.long))
