"""The vocabulary and embeddings of a .gguf file, for programs that leave its weights to llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sordino.models.description import DescribedModel
from sordino.models.gguf_header import EMBEDDINGS


class GgufVocabulary:
    """The vocabulary for `nearest.nearest_words`. The embeddings stay on the disk; requested rows are dequantised."""

    device = torch.device("cpu")

    def __init__(self, model: DescribedModel, path: Path) -> None:
        from gguf import GGUFReader

        self._model = model
        # Mapped, not read.
        self._table = next(tensor for tensor in GGUFReader(path).tensors if tensor.name == EMBEDDINGS)

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    def embed(self, ids: Tensor) -> Tensor:
        """float32 [n, D] of ids [n]."""
        from gguf.quants import dequantize

        rows = dequantize(np.asarray(self._table.data)[ids.numpy()], self._table.tensor_type)
        return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode(ids)
