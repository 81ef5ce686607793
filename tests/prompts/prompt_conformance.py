"""What every kind of `Prompt` must do. Give `check` a way to make prompts of the kind for a base model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from sordino.errors import DoesNotFit
from sordino.forward.placement import encode_prompts, leading_ids, prefix_length
from sordino.forward.prefix import Prefixes, forward_rows
from sordino.forward.rows import rows_from_examples
from sordino.models.base_model import BaseModel
from sordino.prompts.prompt import KeysValues, Prompt
from sordino.prompts.soft_prompt import Metadata, SoftPrompt

# Of hidden states, relative, in norm: prompts side by side are padded, which changes the order of sums.
TOLERANCE = 1e-5
TEXT = "the keeper wrote of the sea"

# From a seed to a prompt of the kind: equal seeds give equal prompts, other seeds others.
Make = Callable[[int], Prompt]


def check(base: BaseModel, make: Make) -> None:
    """All of it. base: in float64."""
    check_identity(make)
    check_prefix(base, make)
    check_beside_others(base, make)


def check_identity(make: Make) -> None:
    """The hash is of what the prompt does."""
    one, same, other = make(1), make(1), make(2)
    assert one.kind
    assert one.n_tokens >= 1
    assert one.content_hash == one.content_hash == same.content_hash != other.content_hash
    assert len(bytes.fromhex(one.content_hash)) == 32


def check_prefix(base: BaseModel, make: Make) -> None:
    """It is the same each time, finite, of the stated length, and refused for a model of another width."""
    prompt = make(1)
    first, again = arrays(prompt.prefix(base.ref)), arrays(prompt.prefix(base.ref))
    for array, repeated in zip(first, again, strict=True):
        assert np.isfinite(array).all()
        np.testing.assert_array_equal(array, repeated)
    assert encode_prompts(base, [prompt]).lengths == (prefix_length(base, prompt),)
    with pytest.raises(DoesNotFit):
        prompt.prefix(replace(base.ref, d_model=base.d_model + 1, n_layers=base.n_layers + 1, fingerprint=""))


def check_beside_others(base: BaseModel, make: Make) -> None:
    """Its texts do not depend on which prompts are encoded with it, or in which order."""
    width = make(1).n_tokens
    others = [None, *(embedding_prompt(base, count) for count in (1, width + 4))]
    prompts = [others[0], make(1), others[1], make(2), others[2]]
    together = encode_prompts(base, prompts)
    for k, prompt in enumerate(prompts):
        alone = encode_prompts(base, [prompt])
        assert alone.lengths == (together.lengths[k],) == (prefix_length(base, prompt),)
        near(hidden(base, together, k, prompt), hidden(base, alone, 0, prompt))


def hidden(base: BaseModel, prefixes: Prefixes, k: int, prompt: Prompt | None) -> torch.Tensor:
    """Hidden states [T, D] of a text after prefix k."""
    ids = [*leading_ids(base, prompt.metadata.placement if prompt else None), *base.encode(TEXT)]
    return forward_rows(base.network, prefixes, rows_from_examples([[ids]], [k]))[0]


def embedding_prompt(base: BaseModel, tokens: int, seed: int = 0) -> SoftPrompt:
    matrix = np.random.default_rng(seed).standard_normal((tokens, base.d_model)).astype(np.float32) * 0.5
    return SoftPrompt(matrix, Metadata(placement="start"))


def near(one: torch.Tensor, other: torch.Tensor) -> None:
    assert float((one - other).norm() / other.norm()) <= TOLERANCE


def arrays(content: np.ndarray | KeysValues) -> Sequence[np.ndarray]:
    if isinstance(content, KeysValues):
        return [*content.keys_LHPC, *content.values_LHPC, content.last_D]
    return [content]
