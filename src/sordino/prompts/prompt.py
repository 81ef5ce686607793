"""The seam for kinds of soft prompts: what every kind owes to the code that runs, shares and serves it.

The kinds are the embedding prompt (`SoftPrompt`) and the KV prompt (`KVPrompt`). A mixture is not a kind of its own here: it has
components, each a `Prompt`.

Shape key: P virtual tokens, D model width, L layers, H key-value heads, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from sordino.prompts.attention import PLAIN, PromptAttention

if TYPE_CHECKING:
    from sordino.prompts.soft_prompt import BaseRef, Metadata

Vectors = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class KeysValues:
    """A prompt as keys and values, for one base model.

    keys_LHPC, values_LHPC: float32 [H, P, C] for each of the L layers, as the model caches them at the positions 0 to P - 1 (with
    rotary embeddings applied). last_D: the hidden state after the final norm that predicts the first token of a text; it is used
    only where no BOS comes first.
    """

    keys_LHPC: Sequence[NDArray[np.float32]]
    values_LHPC: Sequence[NDArray[np.float32]]
    last_D: NDArray[np.float32]


class Prompt(Protocol):
    """What a text can be run after. An implementer owes:

    - Values that never change once they are made: prefixes are cached under `content_hash`.
    - `content_hash` (hex, 64 digits) covers all that the prompt does to a model, and no name: two prompts of equal hash give the
      same prefix under one placement, and any other prompt has another hash.
    - `n_tokens` is the number of positions that `prefix` takes, BOS not counted: at least 1.
    - `d_model` is the width of the models that it is for; `metadata` says what else is known of them, and where it is placed.
    - `prefix` gives the same values each time: vectors [P, D], finite, that run through the layers as token embeddings do, or keys
      and values for every layer. It raises DoesNotFit for a base model that it cannot be a prefix of.
    - `kind` is the field's name for it, as in "embedding prompt". A backend lists the kinds it runs and refuses others by name.

    tests/prompts/prompt_conformance.py checks an implementation.
    """

    @property
    def kind(self) -> str: ...

    @property
    def n_tokens(self) -> int: ...

    @property
    def d_model(self) -> int: ...

    @property
    def content_hash(self) -> str: ...

    @property
    def metadata(self) -> Metadata: ...

    def prefix(self, base: BaseRef, /) -> Vectors | KeysValues:
        """What stands for the prompt before a text of this base model. Raises DoesNotFit."""


def attention_of(prompt: Prompt | None) -> PromptAttention:
    return PLAIN if prompt is None else prompt.metadata.attention
