"""A second kind of prompt: keys and values, taken from the run of an embedding prompt, so that it must do what that one does."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sordino.errors import DoesNotFit
from sordino.forward.placement import encode_prompts
from sordino.models.base_model import BaseModel
from sordino.prompts.prompt import KeysValues
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt


@dataclass(frozen=True, eq=False)
class KeysValuesPrompt:
    given: KeysValues
    base: BaseRef
    metadata: Metadata
    kind: str = "KV prompt"

    @property
    def n_tokens(self) -> int:
        return int(self.given.keys_LHPC[0].shape[1])

    @property
    def d_model(self) -> int:
        return self.base.d_model

    @cached_property
    def content_hash(self) -> str:
        digest = hashlib.sha256(self.kind.encode())
        for array in (*self.given.keys_LHPC, *self.given.values_LHPC, self.given.last_D):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def prefix(self, base: BaseRef) -> KeysValues:
        if (base.d_model, base.n_layers) != (self.base.d_model, self.base.n_layers):
            raise DoesNotFit("the KV prompt is for another base model", got=base.id)
        return self.given

    def with_metadata(self, **changes: Any) -> KeysValuesPrompt:
        return replace(self, metadata=replace(self.metadata, **changes))


def keys_values_of(base: BaseModel, prompt: SoftPrompt) -> KeysValuesPrompt:
    prefixes = encode_prompts(base, [prompt])
    keys, values, (last_D,) = (
        [tensor[0].float().numpy() for tensor in tensors]
        for tensors in (prefixes.keys_KHPC, prefixes.values_KHPC, (prefixes.last_KD,))
    )
    return KeysValuesPrompt(KeysValues(keys, values, last_D), base.ref, prompt.metadata)
