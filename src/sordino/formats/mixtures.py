"""Mixtures, `.mix.zip`: mixture.json, the components as files of their own, and the slope of a gate (docs/formats.md).

All members are stored, as are those of the components: nothing in the file unpacks to more than its size.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sordino.errors import SoftPromptFileError
from sordino.formats import kobold, kv_prompts, meta, npy
from sordino.formats.json_text import parse, read_object
from sordino.formats.kv_prompts import OpenedKV
from sordino.formats.meta_keys import MIXTURE, Check, Keys, is_hash, is_number, is_object, is_text
from sordino.formats.sources import Readable
from sordino.formats.tensors import Opened, TensorView, check, load, shape_of
from sordino.formats.zips import Archive, write_zip
from sordino.prompts.kv_prompt import KVPrompt, SinglePrompt
from sordino.prompts.mixture import MAX_COMPONENTS, RULES, Gate, Mixture
from sordino.prompts.soft_prompt import Metadata

GATE = "gate.npy"
_KV_ENDING = ".kv.zip"
# Rounding of a sum of a few float64s.
_SUM_TOLERANCE = 1e-9
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class OpenedMixture:
    """A mixture whose headers were read and agree. shape: of the longest component."""

    described: meta.Described
    sources: tuple[Readable, ...]
    components: tuple[Opened | OpenedKV, ...]
    gate: TensorView | None
    shape: tuple[int, int]


def is_mixture(archive: Archive) -> bool:
    """Whether this zip holds a mixture."""
    return any(member.filename == kobold.MIXTURE for member in archive.members)


def file_name(index: int, *, kv: bool) -> str:
    """The member's name of a component, a KV prompt or not."""
    return f"components/{index}{_KV_ENDING if kv else '.zip'}"


def open_mixture(archive: Archive) -> OpenedMixture:
    """Read the headers of all members. Raises SoftPromptFileError."""
    members = archive.stored(MAX_COMPONENTS + 2, "a mixture")
    source = members[kobold.MIXTURE]
    described = _described(read_object(source), source.where)
    names = [item["file"] for item in described.own["components"]]
    has_gate = "gate" in described.own
    wanted = [kobold.MIXTURE, *names, *([GATE] if has_gate else [])]
    if sorted(members) != sorted(wanted):
        raise SoftPromptFileError(
            "the members are not those that mixture.json lists",
            where=archive.where,
            expected=", ".join(wanted),
            got=", ".join(sorted(name[:40] for name in members)[: len(wanted) + 2]),
        )
    sources = tuple(members[name] for name in names)
    components = tuple(
        _open_component(name, Archive(source, archive.files)) for name, source in zip(names, sources, strict=True)
    )
    shape = _shape(components, sources, archive.where)
    gate = npy.stored(members[GATE]) if has_gate else None
    if gate is not None and shape_of(gate) != (len(names), shape[1]):
        raise SoftPromptFileError(
            "the gate was made for other components",
            where=gate.source.where,
            expected=[len(names), shape[1]],
            got=list(gate.shape),
        )
    described = replace(described, metadata=_placed(described.metadata, components))
    return OpenedMixture(described, sources, components, gate, shape)


def read(opened: OpenedMixture, where: str) -> Mixture:
    """The mixture. Everything but the hashes is checked before the first matrix is loaded. Raises SoftPromptFileError."""
    for source in opened.sources:
        source.verify()
    for component in opened.components:
        if isinstance(component, OpenedKV):
            kv_prompts.verify(component)
        else:
            check(component.tensor)
    if opened.gate is not None:
        check(opened.gate)
    stated = opened.described.own
    prompts = []
    for item, component in zip(stated["components"], opened.components, strict=True):
        place, key = f"{where}: {item['file']}", "tensor_sha256"
        prompt = _read_component(component, place)
        meta.check_hash(place, "the matrix", key, item.get(key, ""), prompt.content_hash)
        prompts.append(prompt)
    gate = None
    if opened.gate is not None:
        gate = Gate(load(opened.gate), np.array(stated["gate"]["bias"], dtype=np.float32))
    weights_K = np.array([item["weight"] for item in stated["components"]], dtype=np.float64)
    mixture = Mixture(tuple(prompts), weights_K, stated["rule"], gate, opened.described.metadata)
    meta.check_hash(where, "the mixture", MIXTURE.hash_key, opened.described.content_hash, mixture.content_hash)
    return mixture


def _open_component(name: str, archive: Archive) -> Opened | OpenedKV:
    return kv_prompts.open_archive(archive) if name.endswith(_KV_ENDING) else kobold.read_component(archive)


def _read_component(component: Opened | OpenedKV, where: str) -> SinglePrompt:
    if isinstance(component, OpenedKV):
        return kv_prompts.read(component, where)
    return kobold.prompt_of(component, component.metadata or Metadata(), where)


def _shape(components: Sequence[Opened | OpenedKV], sources: Sequence[Readable], where: str) -> tuple[int, int]:
    """Tokens of the longest component, and the width of all; 0 where none states it. Raises SoftPromptFileError."""
    widths = sorted({one.d_model for one in components} - {0})
    if len(widths) > 1:
        raise SoftPromptFileError(
            "the components are of different widths", where=where, expected="one width", got=widths
        )
    width = next(iter(widths), 0)
    for source, component in zip(sources, components, strict=True):
        meta.of_width(component.metadata or Metadata(), source.where, width)
    return max(one.n_tokens for one in components), width


def to_bytes(mixture: Mixture) -> bytes:
    """mixture.json. Raises BadInput for metadata that could not be read again."""
    stated: dict[str, Any] = {
        "rule": mixture.rule,
        "components": [
            {"file": name, "weight": float(weight), "tensor_sha256": prompt.content_hash}
            for name, prompt, weight in zip(_names(mixture), mixture.components, mixture.weights_K, strict=True)
        ],
    }
    if mixture.gate is not None:
        stated["gate"] = {"file": GATE, "bias": [float(value) for value in mixture.gate.bias_K]}
    version = 2 if any(isinstance(prompt, KVPrompt) for prompt in mixture.components) else 1
    described = meta.to_json(mixture.metadata, MIXTURE, mixture.content_hash, stated, version=version)
    data = meta.encoded(described, kobold.MIXTURE)
    _described(parse(data, "metadata"), "metadata")
    meta.check_width(mixture.metadata, mixture.d_model)
    return data


def members_of(mixture: Mixture) -> list[tuple[str, Sequence[bytes]]]:
    """The members of the file, in order. Raises BadInput."""
    members: list[tuple[str, Sequence[bytes]]] = [(kobold.MIXTURE, [to_bytes(mixture)])]
    for name, prompt in zip(_names(mixture), mixture.components, strict=True):
        buffer = io.BytesIO()
        write_zip(buffer, kv_prompts.members_of(prompt) if isinstance(prompt, KVPrompt) else kobold.members_of(prompt))
        members.append((name, [buffer.getvalue()]))
    if mixture.gate is not None:
        members.append((GATE, npy.pieces(mixture.gate.slope_KD)))
    return members


def _names(mixture: Mixture) -> list[str]:
    return [file_name(index, kv=isinstance(prompt, KVPrompt)) for index, prompt in enumerate(mixture.components)]


def _described(obj: Mapping[str, Any], where: str) -> meta.Described:
    """mixture.json, its weights checked. Raises SoftPromptFileError."""
    described = meta.from_json(obj, where, MIXTURE)
    where = f"{where}: sordino.mixture"
    stated = meta.checked(described.own, _KEYS, where, ("rule", "components"))
    components = stated["components"]
    for index, item in enumerate(components):
        place = f"{where}.components[{index}]"
        meta.checked(item, _COMPONENT_KEYS, place, ("file", "weight"))
        allowed = [file_name(index, kv=kv) for kv in ((False, True) if described.version > 1 else (False,))]
        if item["file"] not in allowed:
            raise meta.wrong(f"{place}.file", " or ".join(map(repr, allowed)), item["file"])
    total = sum(item["weight"] for item in components)
    if abs(total - 1) > _SUM_TOLERANCE:
        raise meta.wrong(f"{where}.components", "weights that sum to 1", total)
    if "gate" in stated:
        gate = meta.checked(stated["gate"], _GATE_KEYS, f"{where}.gate")
        if gate.get("file") != GATE or len(gate.get("bias", ())) != len(components):
            raise meta.wrong(f"{where}.gate", f'"file": "{GATE}" and "bias", a number for each component', gate)
    return described


def _placed(known: Metadata, components: Sequence[Opened | OpenedKV]) -> Metadata:
    """A mixture's metadata has the placement of its first component."""
    first = components[0].metadata
    return known if first is None else replace(known, placement=first.placement)


def _is_list(value: Any, is_good: Check) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= MAX_COMPONENTS and all(map(is_good, value))


_KEYS: Keys = {
    "rule": (", ".join(RULES), lambda value: value in RULES),
    "components": (
        f"a list of 1 to {MAX_COMPONENTS} objects",
        lambda value: _is_list(value, is_object),
    ),
    "gate": ("an object", is_object),
}
_COMPONENT_KEYS: Keys = {
    "file": ("the name of a component, as components/0.zip", is_text),
    "weight": ("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1),
    "tensor_sha256": ("64 hexadecimal digits", is_hash),
}
_GATE_KEYS: Keys = {
    "file": ("a text", is_text),
    "bias": (
        "a list of numbers",
        lambda value: _is_list(value, lambda item: is_number(item) and abs(item) <= _LARGEST),
    ),
}
