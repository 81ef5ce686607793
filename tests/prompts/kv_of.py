"""The KV prompt that does what an embedding prompt does: the keys and values of its own run."""

from __future__ import annotations

import numpy as np

from sordino.forward.placement import encode_prompts
from sordino.models.base_model import BaseModel
from sordino.prompts.kv_prompt import KVPrompt, KVShape
from sordino.prompts.soft_prompt import SoftPrompt


def kv_of(base: BaseModel, prompt: SoftPrompt) -> KVPrompt:
    run = encode_prompts(base, [prompt])
    keys, values = (
        [tensor_KHPC[0, :, -prompt.n_tokens :].float().numpy() for tensor_KHPC in side]
        for side in (run.keys_KHPC, run.values_KHPC)
    )
    flat_PW = np.stack([np.stack(pair) for pair in zip(keys, values, strict=True)]).transpose(3, 0, 1, 2, 4)
    heads, _, channels = keys[0].shape
    shape = KVShape(len(keys), heads, channels)
    return KVPrompt(flat_PW.reshape(prompt.n_tokens, -1), shape, run.last_KD[0].float().numpy(), prompt.metadata)
