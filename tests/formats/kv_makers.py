"""KV prompts and their files, some of them built without our writers."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from sordino.prompts.kv_prompt import KVPrompt, KVShape
from sordino.prompts.soft_prompt import Metadata

SHAPE = KVShape(2, 1, 2)


def kv_prompt(seed: int = 0, tokens: int = 3, shape: KVShape = SHAPE, d_model: int = 8, **said: Any) -> KVPrompt:
    """d_model: 0 for one without a last hidden state."""
    random = np.random.default_rng(seed)
    flat_PW, last_D = (random.standard_normal(size).astype(np.float32) for size in ((tokens, shape.width), d_model))
    return KVPrompt(flat_PW, shape, last_D, Metadata(**{"name": f"kv{seed}", **said}))


def described(**changes: Any) -> dict[str, Any]:
    """The smallest meta.json of `kv_prompt()`; None as a change leaves a key of `sordino` out."""
    shape = {"layers": 2, "heads": 1, "channels": 2}
    kv = {**shape, "dtype": "float32", "keys": "rotated", "first_position": 0}
    ours = {"format_version": 1, "kind": "KV prompt", "kv": kv, "placement": {"position": "start"}} | changes
    return {"name": "v", "sordino": {key: value for key, value in ours.items() if value is not None}}


def encoded(meta: Any) -> bytes:
    return json.dumps(meta).encode()


def safetensors(header: dict[str, Any], data: bytes) -> bytes:
    """A file with any claim in its header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def good() -> dict[str, Any]:
    """The header of `kv_prompt()`'s numbers."""
    return {"flat": entry([3, 8], 0, 96), "last": entry([8], 96, 128)}


def numbers() -> bytes:
    prompt = kv_prompt()
    return prompt.flat_PW.tobytes() + prompt.last_D.tobytes()
