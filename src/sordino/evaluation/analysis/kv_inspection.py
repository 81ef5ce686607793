"""Inside a KV prompt: how large its keys and values are, layer by layer, beside those of real text. It has no nearest words.

Shape key: P positions, L layers, H key-value heads, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sordino.errors import DoesNotFit
from sordino.evaluation.confidence import Floats
from sordino.evaluation.off_domain import own_text
from sordino.forward.prefix import encode_prefixes
from sordino.models.base_model import BaseModel
from sordino.prompts.kv_prompt import KVPrompt
from sordino.prompts.prompt import KeysValues


@dataclass(frozen=True, eq=False)
class KVInspection:
    """Mean norms [L] over positions and heads, without the first position, the attention sink. text_*: of the base model's own
    keys and values of a text in the prompt's place."""

    label: str
    prompt: KVPrompt
    keys_L: Floats
    values_L: Floats
    text_keys_L: Floats
    text_values_L: Floats


def inspected_kv(base: BaseModel, label: str, prompt: KVPrompt) -> KVInspection:
    """Inspect one KV prompt. The text is a packaged one. Raises DoesNotFit."""
    given = prompt.prefix(base.ref)
    own = _of_text(base, prompt)
    if len(own.keys_LHPC) != len(given.keys_LHPC):
        raise DoesNotFit("the KV prompt is for another base model", where=label, got=prompt.shape)
    found = [_norms(side) for side in (given.keys_LHPC, given.values_LHPC, own.keys_LHPC, own.values_LHPC)]
    return KVInspection(label, prompt, *found)


def to_json(found: KVInspection) -> dict[str, Any]:
    """For `sordino inspect --json`."""
    columns = {
        "keys": found.keys_L,
        "values": found.values_L,
        "text_keys": found.text_keys_L,
        "text_values": found.text_values_L,
    }
    prompt = found.prompt
    return {
        "label": found.label,
        "kind": prompt.kind,
        "content_hash": prompt.content_hash,
        "n_tokens": prompt.n_tokens,
        "kv": asdict(prompt.shape),
        "layers": [
            {name: float(column_L[layer]) for name, column_L in columns.items()} for layer in range(len(found.keys_L))
        ],
    }


def _of_text(base: BaseModel, prompt: KVPrompt) -> KeysValues:
    """The keys and values of the first tokens of a packaged text, as many as the prompt has positions."""
    _, pieces = own_text(prompt)
    ids = [*base.bos_ids, *(token for piece in pieces for token in base.encode(piece.text))][: prompt.n_tokens]
    embeds_PD = base.embed(torch.tensor(ids, dtype=torch.long, device=base.device)).float()
    run = encode_prefixes(base.network, [embeds_PD])
    keys, values = ([one[0].float().cpu().numpy() for one in side] for side in (run.keys_KHPC, run.values_KHPC))
    return KeysValues(keys, values, np.empty(0, np.float32))


def _norms(side_LHPC: Sequence[NDArray[np.float32]]) -> Floats:
    """[L]. Where there is one position, that is taken."""
    rest = [side_HPC[:, 1:] if side_HPC.shape[1] > 1 else side_HPC for side_HPC in side_LHPC]
    return np.array([np.linalg.norm(side_HPC.astype(np.float64), axis=-1).mean() for side_HPC in rest])
