"""A KV prompt: keys and values for every layer at P positions, trained directly. This module knows no file format and no model.

Prefix-tuning (Li & Liang 2021, arXiv 2101.00190) without a network that computes them, begun from real text (Cartridges, 2025,
arXiv 2506.06266). Keys are those of the cache: with rotary embeddings applied, for the prompt's own positions.

Shape key: P virtual tokens, L layers, H key-value heads, C channels of a head, D model width, W = L * 2 * H * C.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sordino.errors import BadInput, DoesNotFit, SoftPromptFileError
from sordino.prompts.prompt import KeysValues
from sordino.prompts.saving import save
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt, check_finite, checked_shape

# W of the largest models without grouped queries: 126 layers of 128 heads of 128 channels.
MAX_KV_WIDTH = 1 << 22


@dataclass(frozen=True)
class KVShape:
    """L layers of H key-value heads of C channels each, keys and values alike."""

    layers: int
    heads: int
    channels: int

    def __str__(self) -> str:
        return f"{self.layers} layers of {self.heads} x {self.channels}"

    @property
    def width(self) -> int:
        """W: how many numbers a position has."""
        return self.layers * 2 * self.heads * self.channels


@dataclass(frozen=True, eq=False)
class KVPrompt:
    """Keys and values for every layer of one base model, at P positions, and their metadata.

    flat_PW: float32 [P, W], for each position layer by layer its keys [H, C], then its values [H, C]. last_D: float32, the hidden
    state after the final norm that predicts the first token of a text; used only where no BOS comes first. Empty where it is
    unknown, as in PEFT's files: every first token is then equally likely.

    Where the placement is `start`, position 0 is the attention sink. Where it is `after_bos`, the model's own BOS stands at
    position 0 and the prompt from position 1 on. Raises SoftPromptFileError for arrays of other shapes, or values that are not
    finite.
    """

    flat_PW: NDArray[np.float32]
    shape: KVShape
    last_D: NDArray[np.float32]
    metadata: Metadata = field(default_factory=Metadata)
    kind: ClassVar[str] = "KV prompt"

    def __post_init__(self) -> None:
        flat_PW, last_D = (np.array(array, dtype=np.float32, order="C") for array in (self.flat_PW, self.last_D))
        sizes = (self.shape.layers, self.shape.heads, self.shape.channels)
        width = self.shape.width
        if min(sizes) < 1 or width > MAX_KV_WIDTH or flat_PW.shape[1:] != (width,) or last_D.ndim != 1:
            raise SoftPromptFileError(
                "the tensors of the KV prompt do not match",
                where=self.metadata.name,
                expected="[n_tokens, layers * 2 * heads * channels] and [d_model]",
                got=f"{list(flat_PW.shape)} and {list(last_D.shape)} for {sizes} layers, heads, channels",
            )
        checked_shape(flat_PW.shape, where=self.metadata.name, most_width=MAX_KV_WIDTH)
        for name, array in (("flat_PW", flat_PW), ("last_D", last_D)):
            check_finite(array, where=self.metadata.name)
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def __repr__(self) -> str:
        shape = self.shape
        return f"KVPrompt({self.metadata.name!r}, {self.n_tokens} x {shape.layers} x {shape.heads} x {shape.channels})"

    @property
    def n_tokens(self) -> int:
        return len(self.flat_PW)

    @property
    def d_model(self) -> int:
        """The width of the base model; 0 where neither the last hidden state nor the metadata says it."""
        return len(self.last_D) or self.metadata.base.d_model

    @property
    def first_position(self) -> int:
        """The position in the text that its first keys are rotated for."""
        return 1 if self.metadata.placement == "after_bos" else 0

    @property
    def title(self) -> str:
        """What messages call it: its name, or the start of its hash."""
        return self.metadata.name or self.content_hash[:12]

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the shape and the little-endian float32 bytes: the identity of the prompt. Names are left out."""
        shape = self.shape
        head = f"kv float32 {self.n_tokens} {shape.layers} {shape.heads} {shape.channels} {len(self.last_D)}\n"
        arrays = (array.astype("<f4", copy=False).tobytes() for array in (self.flat_PW, self.last_D))
        return hashlib.sha256(b"".join([head.encode(), *arrays])).hexdigest()

    def prefix(self, base: BaseRef) -> KeysValues:
        """Keys and values of each layer, [H, P, C]. Raises DoesNotFit for a base model of other sizes."""
        if self.d_model not in (0, base.d_model) or base.n_layers not in (0, self.shape.layers):
            raise DoesNotFit(
                "the KV prompt does not fit the base model",
                where=self.title,
                expected=f"{base.d_model} wide, {base.n_layers} layers",
                got=f"{self.d_model} wide, {self.shape.layers} layers",
            )
        shape = self.shape
        by_layer = self.flat_PW.reshape(self.n_tokens, shape.layers, 2, shape.heads, shape.channels)
        keys, values = (by_layer[:, :, side].transpose(1, 2, 0, 3) for side in (0, 1))
        last_D = self.last_D if len(self.last_D) else np.zeros(base.d_model, np.float32)
        return KeysValues(list(keys), list(values), last_D)

    def with_metadata(self, **changes: Any) -> KVPrompt:
        """The same tensors with some metadata fields replaced."""
        return replace(self, metadata=replace(self.metadata, **changes))

    def rounded(self) -> KVPrompt:
        """With the nearest float16 numbers, of which a file takes half the bytes. Raises BadInput where one is beyond them."""
        with np.errstate(over="ignore"):
            flat_PW, last_D = (array.astype(np.float16).astype(np.float32) for array in (self.flat_PW, self.last_D))
        if not (np.isfinite(flat_PW).all() and np.isfinite(last_D).all()):
            most = float(np.finfo(np.float16).max)
            raise BadInput("values are too large for float16", where=self.title, expected=f"at most {most:g}")
        return replace(self, flat_PW=flat_PW, last_D=last_D)

    def save(self, path: str | Path, *, to: str = "kv", overwrite: bool = False) -> None:
        """Write a file that `sordino.load` reads: a .kv.zip, or a folder of PEFT (`formats.KV_WRITABLE`).

        A library takes KV prompts that are called NAME.kv.zip. Raises BadInput, StorageError.
        """
        save(self, path, to=to, overwrite=overwrite)


# What a file holds, mixtures aside.
SinglePrompt = SoftPrompt | KVPrompt
