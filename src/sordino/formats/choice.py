"""Which tensor of a file of several is the soft prompt."""

from __future__ import annotations

from collections.abc import Sequence

from sordino.errors import SoftPromptFileError
from sordino.formats.tensors import ITEM_SIZES, StoredTensor

# PEFT's name, and the name in files made with the SoftEmbedding class that many scripts share.
_KNOWN_NAMES = ("prompt_embeddings", "learned_embedding")

Named = tuple[str, StoredTensor]


def choose(tensors: Sequence[Named], index: int | None, where: str) -> StoredTensor:
    """The soft prompt, or number `index` of those in the file. Raises SoftPromptFileError, with a list to choose from.

    A tensor with a known name is the only candidate; else all floating ones with two or three dimensions are. One with
    three, [k, n_tokens, d_model], holds k soft prompts.
    """
    candidates = _candidates(tensors, where)
    numbers = [_prompts_in(tensor) for _, tensor in candidates]
    total = sum(numbers)
    if index is None and total > 1:
        raise SoftPromptFileError(
            "the file holds several soft prompts",
            where=where,
            got=_listed(candidates, numbers),
            do="choose one with --index",
        )
    wanted = index or 0
    if not 0 <= wanted < total:
        raise SoftPromptFileError(
            "the file does not hold that many soft prompts",
            where=where,
            expected=f"an index from 0 to {total - 1}",
            got=f"--index {wanted}",
        )
    for (_, tensor), number in zip(candidates, numbers, strict=True):
        if wanted < number:
            return tensor if number == 1 else tensor.part(wanted)
        wanted -= number
    raise AssertionError("the index was checked")


def only(index: int | None, where: str) -> None:
    """For formats that hold one soft prompt: no index, or the first. Raises SoftPromptFileError."""
    if index:
        raise SoftPromptFileError(
            "the file holds one soft prompt", where=where, got=f"--index {index}", do="leave --index out"
        )


def _candidates(tensors: Sequence[Named], where: str) -> list[Named]:
    if not tensors:
        raise SoftPromptFileError("there is no tensor in it", where=where)
    for known in _KNOWN_NAMES:
        named = [item for item in tensors if item[0].split(".")[-1] == known]
        if named:
            return named
    if len(tensors) == 1:
        # Whatever is wrong with it is said by the checks of every matrix.
        return list(tensors)
    floating = [item for item in tensors if item[1].dtype in ITEM_SIZES and len(item[1].shape) in (2, 3)]
    if not floating:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors[:4])
        raise SoftPromptFileError(
            "no tensor in it is a soft prompt", where=where, expected="floats [n_tokens, d_model]", got=shapes
        )
    return floating


def _prompts_in(tensor: StoredTensor) -> int:
    return tensor.shape[0] if len(tensor.shape) == 3 and tensor.shape[0] > 1 else 1


def _listed(candidates: Sequence[Named], numbers: Sequence[int]) -> str:
    parts, first = [], 0
    for (name, tensor), number in list(zip(candidates, numbers, strict=True))[:8]:
        which = str(first) if number == 1 else f"{first}-{first + number - 1}"
        parts.append(f"{which}: {name[-60:] or 'tensor'} {list(tensor.shape)}")
        first += number
    return ", ".join(parts) + (f" and {len(candidates) - 8} more" if len(candidates) > 8 else "")
