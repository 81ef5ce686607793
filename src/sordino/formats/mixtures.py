"""Mixtures, `.mix.zip`: mixture.json, the components as native zips, and the slope of a gate (docs/formats.md).

All members are stored, as are those of the components: nothing in the file unpacks to more than its size.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np

from sordino.errors import SoftPromptFileError
from sordino.formats import kobold, meta, npy
from sordino.formats.json_text import parse, read_object
from sordino.formats.sources import Readable
from sordino.formats.tensors import Opened, TensorView, check, load, shape_of
from sordino.formats.zips import Archive, write_zip
from sordino.prompts.mixture import MAX_COMPONENTS, RULES, Gate, Mixture
from sordino.prompts.soft_prompt import Metadata, SoftPrompt

GATE = "gate.npy"
# Rounding of a sum of a few float64s.
_SUM_TOLERANCE = 1e-9
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class OpenedMixture:
    """A mixture whose headers were read and agree. shape: of the longest component."""

    described: meta.Described
    sources: tuple[Readable, ...]
    components: tuple[Opened, ...]
    gate: TensorView | None
    shape: tuple[int, int]


def is_mixture(archive: Archive) -> bool:
    """Whether this zip holds a mixture."""
    return any(member.filename == kobold.MIXTURE for member in archive.members)


def file_name(index: int) -> str:
    """The member's name of a component."""
    return f"components/{index}.zip"


def open_mixture(archive: Archive) -> OpenedMixture:
    """Read the headers of all members. Raises SoftPromptFileError."""
    members = _members(archive)
    source = members[kobold.MIXTURE]
    described = _described(read_object(source), source.where)
    count = len(described.mixture["components"])
    has_gate = "gate" in described.mixture
    wanted = [kobold.MIXTURE, *map(file_name, range(count)), *([GATE] if has_gate else [])]
    if sorted(members) != sorted(wanted):
        raise SoftPromptFileError(
            "the members are not those that mixture.json lists",
            where=archive.where,
            expected=", ".join(wanted),
            got=", ".join(sorted(name[:40] for name in members)[: len(wanted) + 2]),
        )
    sources = tuple(members[file_name(index)] for index in range(count))
    components = tuple(kobold.read_component(source, archive.files) for source in sources)
    shapes = [shape_of(component.tensor) for component in components]
    widths = sorted({width for _, width in shapes})
    if len(widths) > 1:
        raise SoftPromptFileError(
            "the components are of different widths", where=archive.where, expected="one width", got=widths
        )
    for source, component in zip(sources, components, strict=True):
        meta.of_width(component.metadata or Metadata(), source.where, widths[0])
    gate = npy.stored(members[GATE]) if has_gate else None
    if gate is not None and shape_of(gate) != (count, widths[0]):
        raise SoftPromptFileError(
            "the gate was made for other components",
            where=gate.source.where,
            expected=[count, widths[0]],
            got=list(gate.shape),
        )
    described = replace(described, metadata=_placed(described.metadata, components))
    return OpenedMixture(described, sources, components, gate, (max(tokens for tokens, _ in shapes), widths[0]))


def read(opened: OpenedMixture, where: str) -> Mixture:
    """The mixture. Everything but the hashes is checked before the first matrix is loaded. Raises SoftPromptFileError."""
    tensors = [component.tensor for component in opened.components]
    for source in opened.sources:
        source.verify()
    for tensor in [*tensors, *([opened.gate] if opened.gate else [])]:
        check(tensor)
    stated = opened.described.mixture
    prompts = []
    for item, component in zip(stated["components"], opened.components, strict=True):
        prompt = SoftPrompt(load(component.tensor), component.metadata or Metadata())
        for hash_ in (component.content_hash, item.get("tensor_sha256", "")):
            if hash_ and hash_ != prompt.content_hash:
                raise changed(f"{where}: {item['file']}", "the matrix", "tensor_sha256", hash_, prompt.content_hash)
        prompts.append(prompt)
    gate = None
    if opened.gate is not None:
        gate = Gate(load(opened.gate), np.array(stated["gate"]["bias"], dtype=np.float32))
    weights_K = np.array([item["weight"] for item in stated["components"]], dtype=np.float64)
    mixture = Mixture(tuple(prompts), weights_K, stated["rule"], gate, opened.described.metadata)
    hash_ = opened.described.content_hash
    if hash_ and hash_ != mixture.content_hash:
        raise changed(where, "the mixture", "content_sha256", hash_, mixture.content_hash)
    return mixture


def to_bytes(mixture: Mixture) -> bytes:
    """mixture.json. Raises BadInput for metadata that could not be read again."""
    stated: dict[str, Any] = {
        "rule": mixture.rule,
        "components": [
            {"file": file_name(index), "weight": float(weight), "tensor_sha256": prompt.content_hash}
            for index, (prompt, weight) in enumerate(zip(mixture.components, mixture.weights_K, strict=True))
        ],
    }
    if mixture.gate is not None:
        stated["gate"] = {"file": GATE, "bias": [float(value) for value in mixture.gate.bias_K]}
    data = meta.encoded(meta.mixture_to_json(mixture.metadata, mixture.content_hash, stated), kobold.MIXTURE)
    _described(parse(data, "metadata"), "metadata")
    meta.check_width(mixture.metadata, mixture.d_model)
    return data


def members_of(mixture: Mixture) -> list[tuple[str, Sequence[bytes]]]:
    """The members of the file, in order. Raises BadInput."""
    members: list[tuple[str, Sequence[bytes]]] = [(kobold.MIXTURE, [to_bytes(mixture)])]
    for index, prompt in enumerate(mixture.components):
        buffer = io.BytesIO()
        kobold.write(prompt, buffer)
        members.append((file_name(index), [buffer.getvalue()]))
    if mixture.gate is not None:
        members.append((GATE, npy.pieces_of(mixture.gate.slope_KD)))
    return members


def write(members: Sequence[tuple[str, Sequence[bytes]]], file: BinaryIO) -> None:
    """Write the members: the same bytes for the same mixture on every machine."""
    write_zip(file, members)


def changed(where: object, what: str, key: str, expected: str, got: str) -> SoftPromptFileError:
    """The error of data that does not match its hash."""
    return SoftPromptFileError(
        f"{what} was changed after this file was written",
        where=where,
        expected=f"{key} {expected[:16]}...",
        got=f"{got[:16]}...",
        do=f"get the original, or, to accept the change, delete {key} from the file's metadata",
    )


def _members(archive: Archive) -> dict[str, Readable]:
    archive.check_apart()
    found: dict[str, Readable] = {}
    for member in archive.members:
        if member.filename in found:
            raise SoftPromptFileError(f"the zip has two members called {member.filename[:40]}", where=archive.where)
        if member.compress_type:
            raise SoftPromptFileError(
                "a mixture's members must be stored",
                where=f"{archive.where}: {member.filename[:40]}",
                got="a compressed member",
                do="pack it again without compression (zip -0)",
            )
        found[member.filename] = archive.open(member)
        if len(found) > MAX_COMPONENTS + 2:
            raise SoftPromptFileError(
                "more members than a mixture has", where=archive.where, expected=f"at most {MAX_COMPONENTS + 2}"
            )
    return found


def _described(obj: Mapping[str, Any], where: str) -> meta.Described:
    """mixture.json, its weights checked. Raises SoftPromptFileError."""
    described = meta.from_json(obj, where, of_mixture=True)
    where = f"{where}: sordino.training.mixture"
    stated = meta.checked(described.mixture, _KEYS, where)
    for key in ("rule", "components"):
        if key not in stated:
            raise meta.wrong(f"{where}.{key}", _KEYS[key][0], None)
    components = stated["components"]
    for index, item in enumerate(components):
        place = f"{where}.components[{index}]"
        meta.checked(item, _COMPONENT_KEYS, place)
        if item.get("file") != file_name(index):
            raise meta.wrong(f"{place}.file", repr(file_name(index)), item.get("file"))
        if "weight" not in item:
            raise meta.wrong(f"{place}.weight", _COMPONENT_KEYS["weight"][0], None)
    total = sum(item["weight"] for item in components)
    if abs(total - 1) > _SUM_TOLERANCE:
        raise meta.wrong(f"{where}.components", "weights that sum to 1", total)
    if "gate" in stated:
        gate = meta.checked(stated["gate"], _GATE_KEYS, f"{where}.gate")
        if gate.get("file") != GATE or len(gate.get("bias", ())) != len(components):
            raise meta.wrong(f"{where}.gate", f'"file": "{GATE}" and "bias", a number for each component', gate)
    return described


def _placed(known: Metadata, components: Sequence[Opened]) -> Metadata:
    """A mixture's metadata has the placement of its first component."""
    first = components[0].metadata
    return known if first is None else replace(known, placement=first.placement)


def _is_weight(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_float32(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _LARGEST


def _is_list(value: Any, is_good: meta.Check) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= MAX_COMPONENTS and all(map(is_good, value))


_KEYS: dict[str, tuple[str, meta.Check]] = {
    "rule": (", ".join(RULES), lambda value: value in RULES),
    "components": (
        f"a list of 1 to {MAX_COMPONENTS} objects",
        lambda value: _is_list(value, lambda item: isinstance(item, dict)),
    ),
    "gate": ("an object", lambda value: isinstance(value, dict)),
}
_COMPONENT_KEYS: dict[str, tuple[str, meta.Check]] = {
    "file": ("a text", lambda value: isinstance(value, str)),
    "weight": ("a number from 0 to 1", _is_weight),
    "tensor_sha256": ("64 hexadecimal digits", meta.is_hash),
}
_GATE_KEYS: dict[str, tuple[str, meta.Check]] = {
    "file": ("a text", lambda value: isinstance(value, str)),
    "bias": ("a list of numbers", lambda value: _is_list(value, _is_float32)),
}
