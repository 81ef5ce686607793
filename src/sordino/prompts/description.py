"""What is known of a prompt, as JSON and for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sordino.prompts.kv_prompt import KVPrompt, SinglePrompt
from sordino.prompts.mixture import Mixture, StoredPrompt
from sordino.prompts.soft_prompt import BaseRef, Metadata


def shape(prompt: StoredPrompt) -> str:
    """The matrix, the keys and values, or the components, in a few words."""
    if isinstance(prompt, Mixture):
        return f"mixture of {len(prompt.components)}, up to {prompt.n_tokens} tokens x {prompt.d_model}"
    if isinstance(prompt, KVPrompt):
        return f"{prompt.n_tokens} tokens x {prompt.shape}"
    return f"{prompt.n_tokens} tokens x {prompt.d_model}"


def sizes(prompt: StoredPrompt) -> dict[str, Any]:
    """What identifies the matrix, or the mixture, for JSON."""
    known = {
        "kind": prompt.kind,
        "n_tokens": prompt.n_tokens,
        "d_model": prompt.d_model,
        "content_hash": prompt.content_hash,
    }
    if isinstance(prompt, KVPrompt):
        return known | {"kv": asdict(prompt.shape)}
    if not isinstance(prompt, Mixture):
        return known
    components = [
        {"name": component.metadata.name, "weight": float(weight), **sizes(component)}
        for component, weight in zip(prompt.components, prompt.weights_K, strict=True)
    ]
    return known | {"rule": prompt.rule, "gate": prompt.gate is not None, "components": components}


def facts(path: Path, kind: str, prompt: StoredPrompt) -> Iterator[tuple[str, str]]:
    """(label, value) of all that is known; what the file does not say is left out."""
    known = prompt.metadata
    yield "file", f"{path} ({kind})"
    if isinstance(prompt, Mixture):
        yield "mixture", shape(prompt)
        yield "rule", prompt.rule + (", weights by a gate that reads the text" if prompt.gate else "")
        yield "components", "\n".join(_component_lines(prompt))
    else:
        yield "KV prompt" if isinstance(prompt, KVPrompt) else "matrix", shape(prompt)
        yield "placement", placed(prompt)
    yield "hash", prompt.content_hash
    values = {
        "author": known.author,
        "description": known.description,
        "supported": ", ".join(known.supported),
        "made for": made_for(known, prompt.d_model),
        "base model": _base_line(known.base),
        "licence": known.licence,
        "tags": ", ".join(known.tags),
        "rating": known.rating,
        "created": known.created,
    }
    yield from ((label, value) for label, value in values.items() if value)
    for label, group in (("training", known.training), ("held-out", known.heldout)):
        lines = [f"{key}: {value}" for key, value in _flat(group)]
        if lines:
            yield label, "\n".join(lines)


def _component_lines(mixture: Mixture) -> Iterator[str]:
    for index, (component, weight) in enumerate(zip(mixture.components, mixture.weights_K, strict=True)):
        name = one_line(component.metadata.name) or f"component {index}"
        yield f"{weight:.3f}  {name} ({shape(component)}, {placed(component)}, hash {component.content_hash[:16]})"


def placed(prompt: SinglePrompt) -> str:
    """Where it stands, and what changes attention: `after BOS, hold 128, strength 2`."""
    known = prompt.metadata
    return f"{'after BOS' if known.placement == 'after_bos' else 'at the start'}{attended(known)}"


def made_for(known: Metadata, d_model: int) -> str:
    """The base model, as far as the file says: "EleutherAI/gpt-j-6B (4096 wide)". d_model: 0 where the file does not state it."""
    name = known.base.id or ", ".join(known.supported) or known.base.family
    if not d_model:
        return name
    return f"{name} ({d_model} wide)" if name else f"a model {d_model} wide (the file does not name it)"


def attended(known: Metadata) -> str:
    """`, hold 128, strength 2`; nothing where it is plain."""
    return "" if known.attention.plain else f", {known.attention}"


def _base_line(base: BaseRef) -> str:
    parts = (
        base.id,
        base.family,
        f"width {base.d_model}" if base.d_model else "",
        f"{base.n_layers} layers" if base.n_layers else "",
        f"fingerprint {base.fingerprint[:16]}" if base.fingerprint else "",
    )
    return ", ".join(filter(None, parts))


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of a JSON object as ("a.b", text), each on one line."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, one_line(value if isinstance(value, str) else json.dumps(value))


def one_line(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())
