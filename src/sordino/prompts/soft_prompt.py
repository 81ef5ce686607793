"""A soft prompt: the matrix of virtual tokens and what is known about it.

This module knows no file format and no model. Shape key: P virtual tokens, D model width.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sordino.errors import BadInput, DoesNotFit, SoftPromptFileError
from sordino.prompts.attention import PLAIN, PromptAttention
from sordino.prompts.saving import save

PlacementName = Literal["start", "after_bos"]
Rating = Literal["general", "mature", "explicit"]
PLACEMENTS: tuple[PlacementName, ...] = get_args(PlacementName)
RATINGS: tuple[Rating, ...] = get_args(Rating)

# KoboldAI's loader refuses 2048 tokens and more; so do we, whatever the file came in.
MAX_TOKENS = 2047
MAX_WIDTH = 65536


# What no name on the Hub has: the beginning or end of a path, a backslash, a drive, a second slash.
_PATH = re.compile(r"^\s*[/~.]|\\|^\s*[A-Za-z]:|/.*/|/\.*$")
_ADDRESS = re.compile(r"https?://", re.IGNORECASE)


def model_name(text: str) -> str:
    """What a base model is called: `text`, or of a path on somebody's machine its last component.

    "owner/name" is a name on the Hub, with a slash; a relative path of two parts cannot be told from it. Addresses stay.
    """
    if _ADDRESS.match(text) or not _PATH.search(text):
        return text
    # What is left of "/" and ".." is nothing.
    parts = [part for part in re.split(r"[/\\]", text) if part.strip() not in ("", ".", "..", "~")]
    return parts[-1] if parts else ""


def today() -> str:
    """The date, as in `Metadata.created`."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


@dataclass(frozen=True)
class BaseRef:
    """The base model a soft prompt was made for, as far as its file says. Zero and "" mean "not said".

    id: a name. Of a path on somebody's machine the last component is left, which says nothing of its owner.
    """

    id: str = ""
    family: str = ""
    d_model: int = 0
    n_layers: int = 0
    vocab_size: int = 0
    embedding_rms: float = 0.0
    fingerprint: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", model_name(self.id))


@dataclass(frozen=True)
class Metadata:
    """What a soft prompt says about itself.

    name, author, supported, description are KoboldAI's four keys; `supported` are model names, shown as hints and never enforced.
    The rest is the `sordino` object of the native format (docs/formats.md). `placement` says where it stands, `attention` how
    much attention text gives it. `training`, `heldout` are plain JSON objects; samples are `{"prompt", "with", "without"}`
    objects of strings; `foreign` are other programs' keys of meta.json, kept as they are.
    """

    name: str = ""
    author: str = ""
    supported: tuple[str, ...] = ()
    description: str = ""
    base: BaseRef = BaseRef()
    placement: PlacementName = "start"
    attention: PromptAttention = PLAIN
    licence: str = ""
    tags: tuple[str, ...] = ()
    rating: Rating | Literal[""] = ""
    created: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    heldout: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[Mapping[str, str], ...] = ()
    foreign: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise BadInput("unknown", where="placement", expected=" or ".join(PLACEMENTS), got=self.placement)
        if self.rating and self.rating not in RATINGS:
            raise BadInput("unknown", where="rating", expected=", ".join(RATINGS), got=self.rating)
        if not isinstance(self.attention, PromptAttention):
            raise BadInput("of another type", where="attention", expected="a PromptAttention", got=repr(self.attention))


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """A matrix float32 [n_tokens, d_model] and its metadata.

    The matrix is checked (two dimensions, 1..2047 tokens, finite), made contiguous float32 and read-only.
    Raises SoftPromptFileError where it is not such a matrix.
    """

    matrix: NDArray[np.float32]
    metadata: Metadata = Metadata()

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", checked_matrix(self.matrix))

    kind: ClassVar[str] = "embedding prompt"

    def __repr__(self) -> str:
        return f"SoftPrompt({self.metadata.name!r}, {self.n_tokens} x {self.d_model})"

    @property
    def n_tokens(self) -> int:
        """How many virtual tokens it has."""
        return int(self.matrix.shape[0])

    @property
    def d_model(self) -> int:
        """The width of the base model's embeddings."""
        return int(self.matrix.shape[1])

    @property
    def title(self) -> str:
        """What messages call it: its name, or the start of its hash."""
        return self.metadata.name or self.content_hash[:12]

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the shape and the little-endian float32 bytes: the identity of the prompt.

        Names and other metadata are left out, so a renamed file is the same soft prompt.
        """
        head = f"float32 {self.n_tokens} {self.d_model}\n".encode()
        return hashlib.sha256(head + self.matrix.astype("<f4", copy=False).tobytes()).hexdigest()

    def prefix(self, base: BaseRef) -> NDArray[np.float32]:
        """The matrix, which runs through the layers as token embeddings do. Raises DoesNotFit for another width."""
        check_width(self.d_model, base, where=self.title)
        return self.matrix

    def with_metadata(self, **changes: Any) -> SoftPrompt:
        """The same matrix with some metadata fields replaced."""
        return SoftPrompt(self.matrix, replace(self.metadata, **changes))

    def save(self, path: str | Path, *, to: str = "kobold", overwrite: bool = False) -> None:
        """Write a file that `sordino.load` reads: KoboldAI's zip, or another of `formats.WRITABLE`.

        What the format cannot hold, or other programs will not know, is logged as a warning. overwrite: replace what is there, and
        write what the format holds only in part. Raises BadInput, StorageError, ConfigError for a name of another format.
        """
        save(self, path, to=to, overwrite=overwrite)


def check_width(d_model: int, base: BaseRef, *, where: str) -> None:
    """Raise DoesNotFit unless vectors of this width run through the base model."""
    if base.d_model != d_model:
        raise DoesNotFit(
            "the soft prompt does not fit the base model",
            where=where,
            expected=f"{base.d_model} wide",
            got=f"{d_model} wide",
        )


def checked_shape(shape: tuple[int, ...], *, where: object = "", most_width: int = MAX_WIDTH) -> tuple[int, int]:
    """The (n_tokens, d_model) that a stored shape stands for; [1, n, d] is read as [n, d].

    Call it on a header, before memory is taken. Raises SoftPromptFileError.
    """
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2:
        raise SoftPromptFileError(
            "the tensor has the wrong number of dimensions",
            where=where,
            expected="[n_tokens, d_model]",
            got=list(shape),
        )
    n_tokens, d_model = shape
    if not 1 <= n_tokens <= MAX_TOKENS:
        raise SoftPromptFileError(
            "the number of virtual tokens is out of range", where=where, expected=f"1 to {MAX_TOKENS}", got=n_tokens
        )
    if not 1 <= d_model <= most_width:
        raise SoftPromptFileError("the width is out of range", where=where, expected=f"1 to {most_width}", got=d_model)
    return n_tokens, d_model


def checked_matrix(matrix: NDArray[Any]) -> NDArray[np.float32]:
    """`matrix` as a read-only contiguous float32 [n_tokens, d_model]. Raises SoftPromptFileError."""
    if matrix.dtype.kind != "f":
        expected = "float16, bfloat16, float32 or float64"
        raise SoftPromptFileError("the tensor has the wrong type", expected=expected, got=matrix.dtype)
    shape = checked_shape(matrix.shape)
    with np.errstate(over="ignore"):
        floats = np.array(matrix.reshape(shape), dtype=np.float32, order="C", copy=True)
    check_finite(floats)
    floats.setflags(write=False)
    return floats


def check_finite(values: NDArray[np.float32], *, where: object = "", near: str = "") -> None:
    """Raise SoftPromptFileError for infinities and NaN. near: which part of a tensor these values are."""
    if bad := int(np.count_nonzero(~np.isfinite(values))):
        raise SoftPromptFileError(
            "the tensor holds values that are not finite",
            where=where,
            expected="finite float32 numbers",
            got=f"{bad} inf or nan{near}",
        )
